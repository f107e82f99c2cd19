"""What a stage is: a function from a config section and verified artifacts to one artifact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from luthier.config import Section
from luthier.gates import Gate
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import ArtifactKind

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Slot:
    """One input of a stage: an artifact of `kind` by the first of `stages` in the config.

    With `only_with`, the slot is there only where the config has that stage too.
    With `field`, what that field of the stage's section names is taken from the store instead:
    see `named_by`. What names an artifact is `result_free`, since the artifact is in the key by
    its content.
    With `tag`, it is what that tag names of the run's own versions, where it is set and was not
    made from this very adapter. With `tag_where`, only where that field of the section has that
    value.
    """

    name: str
    kind: ArtifactKind
    stages: tuple[str, ...] = ()
    optional: bool = False
    field: str | None = None
    only_with: str | None = None
    tag: str | None = None
    tag_where: tuple[str, str] | None = None


@dataclass(frozen=True)
class NamedInput:
    """An artifact that a section names: the slot it fills, and where in the section it stands."""

    slot: str
    reference: str
    field: str


def named_by(section: Section, slot: Slot) -> list[NamedInput]:
    """What a section names for a slot with a `field`.

    A text fills the slot itself. Of a list the items fill `slot-1`, `slot-2` and so on, of a
    mapping `slot-KEY`; each is a text, or a section whose field `ref` is that text.
    """
    if slot.field is None:
        return []
    match getattr(section, slot.field):
        case None:
            return []
        case str() as reference:
            return [NamedInput(slot.name, reference, slot.field)]
        case Mapping() as found:
            items = [(str(key), f"{slot.field}.{key}", item) for key, item in found.items()]
        case found:
            items = [
                (str(place + 1), f"{slot.field}[{place}]", item)
                for place, item in enumerate(found)
            ]
    return [
        NamedInput(f"{slot.name}-{key}", item, field)
        if isinstance(item, str)
        else NamedInput(f"{slot.name}-{key}", item.ref, f"{field}.ref")
        for key, field, item in items
    ]


@dataclass(frozen=True)
class Fork:
    """The interrupted run from whose checkpoint a stage goes on with other settings.

    `checkpoint` is its sealed folder, which is there and intact as long as the stage has no
    checkpoint of its own; `parent_key` are the first 16 digits of that run's key.
    """

    checkpoint: Path
    parent_key: str
    step: int


@dataclass(frozen=True)
class StageInputs:
    """What a stage reads: the run's name, the seed, and its verified input artifacts by slot.

    `seed` is the section's own where it has one, else the run's. `fork` is only given to stages
    with `checkpoints`.
    """

    name: str
    seed: int
    artifacts: Mapping[str, Artifact]
    fork: Fork | None = None

    def __getitem__(self, slot: str) -> Artifact:
        return self.artifacts[slot]

    def get(self, slot: str) -> Artifact | None:
        """The artifact of an optional slot."""
        return self.artifacts.get(slot)

    def several(self, slot: str) -> dict[str, Artifact]:
        """The artifacts that a list or mapping of the section names, by place from 1 or by key."""
        prefix = f"{slot}-"
        return {
            name.removeprefix(prefix): artifact
            for name, artifact in self.artifacts.items()
            if name.startswith(prefix)
        }


@dataclass(frozen=True)
class StageResult:
    """What a stage measured. `facts` go to the manifest as they are (JSON values only)."""

    metrics: Mapping[str, Any]
    gates: Sequence[Gate]
    facts: Mapping[str, Any] = field(default_factory=dict)
    timings_seconds: Mapping[str, float] = field(default_factory=dict)


def _no_files(_section: Any) -> Sequence[Path]:
    return ()


def _no_packages(_section: Any) -> Sequence[str]:
    return ()


def _no_check(_section: Any, _filled: frozenset[str]) -> None:
    pass


@dataclass(frozen=True)
class Stage(Generic[SectionT]):
    """One stage of the pipeline. A module in `luthier.stages` with a `STAGE` of this type adds it.

    `version` is raised whenever the same inputs give another result. `packages` are the
    distributions whose version is part of the key, `optional_packages` those that only some
    sections use; so are the seed and the run's name for a stage that uses them. `files` lists what
    the section reads from outside the store; their content is part of the key. `check` raises for
    what would make the stage fail hours later, such as a missing program; it gets the names of the
    slots that are filled. `order` is the place in the pipeline. `checkpoints` names the folder, in
    the workspace's scratch folder, where a stage that trains seals its checkpoints
    (`luthier.training.checkpoints`); with it, a run that differs from an interrupted one is
    refused, and can be forked from it.
    """

    name: str
    order: int
    summary: str
    makes: ArtifactKind
    version: int
    section: type[SectionT]
    run: Callable[[SectionT, StageInputs, Workspace], StageResult]
    slots: tuple[Slot, ...] = ()
    uses_seed: bool = False
    uses_name: bool = False
    packages: tuple[str, ...] = ()
    optional_packages: Callable[[SectionT], Sequence[str]] = _no_packages
    files: Callable[[SectionT], Sequence[Path]] = _no_files
    check: Callable[[SectionT, frozenset[str]], None] = _no_check
    checkpoints: str | None = None
