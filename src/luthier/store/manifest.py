"""What a sealed artifact says of itself: `manifest.json`, schema version 1."""

import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from luthier.gates import Gate, failures
from luthier.store.canonical import sha256_json

SCHEMA_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"

ArtifactKind = Literal[
    "base", "dataset", "pairs", "preferences", "evaluation", "adapter", "model", "bundle"
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{path!r} is not a path inside the artifact")
    return path


class OutputFile(_Record):
    """One file of the artifact; the path is relative to the artifact's folder."""

    path: Annotated[str, AfterValidator(_inside)]
    size_bytes: int
    sha256: str


class InputRef(_Record):
    """An artifact that this one was made from."""

    slot: str
    kind: ArtifactKind
    key: str
    digest: str
    ref: str


class ExternalFile(_Record):
    """A file outside the store that went into the key: data, or a base model's weights."""

    path: str
    size_bytes: int
    sha256: str


class Environment(_Record):
    """The code and the machine that made it. Recorded, never part of the key."""

    luthier: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    packages: dict[str, str]
    platform: str
    cpu_threads: int
    cuda: str | None = None
    gpu: str | None = None


class Recipe(_Record):
    """What goes into a key, as a workspace keeps it while its artifact is being made.

    The fields are those of the manifest of the same names.
    """

    stage: str
    stage_version: int
    key: str
    name: str
    inputs: list[InputRef]
    external_files: list[ExternalFile]
    key_fields: dict[str, Any]
    seed: int | None
    key_packages: dict[str, str]


class ManifestDraft(_Record):
    """What a run knows of an artifact before it is sealed; the seal adds the rest."""

    stage: str
    stage_version: int
    kind: ArtifactKind
    key: str
    name: str
    inputs: list[InputRef] = Field(description="one for each slot that was filled")
    external_files: list[ExternalFile]
    config: dict[str, Any] = Field(description="the stage's section, defaults filled in")
    key_fields: dict[str, Any] = Field(description="the part of `config` that is in the key")
    seed: int | None
    key_packages: dict[str, str]
    metrics: dict[str, Any]
    facts: dict[str, Any] = Field(description="counts, training facts, stop tokens, weights")
    timings_seconds: dict[str, float]
    gates: list[Gate] = Field(description="after the run's gate policy was applied")


class Manifest(ManifestDraft):
    """Identity, outputs, inputs, config, facts, gates and status of one artifact."""

    schema_version: Literal[1] = SCHEMA_VERSION
    version: int
    digest: str = Field(
        description="SHA-256 over path, size and SHA-256 of every output not below `measured/`"
    )
    outputs: list[OutputFile]
    resumed: int = Field(0, description="how often an interrupted run of this stage went on")
    environment: Environment
    created_at: str
    status: Literal["complete", "failed"] = Field(
        description="failed: a gate failed. Kept to look at; nothing is built on it"
    )
    manifest_digest: str = Field("", description="SHA-256 over all the other fields")

    @property
    def ref(self) -> str:
        """`name/kind@vN`, as users write it."""
        return f"{self.name}/{self.kind}@v{self.version}"

    @property
    def failed_gates(self) -> list[Gate]:
        """The gates that failed when this was made."""
        return failures(self.gates)

    def own_digest(self) -> str:
        """What `manifest_digest` must be: SHA-256 over the canonical JSON of the other fields."""
        return sha256_json(self.model_dump(mode="json", exclude={"manifest_digest"}))

    def render(self) -> str:
        """The text of `manifest.json`. The same manifest gives the same bytes.

        Raises:
            ValueError: a value is not JSON (a bug of the stage that gave it).
        """
        values = self.model_dump(mode="json")
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
