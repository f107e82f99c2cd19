"""What one process is told to train, and what it has to say of it: plain values, JSON both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.gates import Gate
from luthier.training.dpo_section import DPOSection
from luthier.training.sft_section import SFTSection


class TrainingJob(BaseModel):
    """Everything that a training run reads, so that several processes can be given the same.

    `base`, `dataset` and `start` are folders of sealed artifacts, `start` that of an adapter to go
    on from. `outputs` gets the adapter, `scratch` the checkpoints. Of preference optimisation,
    `dataset` are the preferences, `shared` is where runs keep what others can use, and
    `reference_inputs` are the digests of all artifacts that the reference depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    section: SFTSection | DPOSection
    base: Path
    base_name: str
    dataset: Path
    start: Path | None
    fork: Path | None
    outputs: Path
    scratch: Path
    shared: Path | None = None
    reference_inputs: dict[str, str] = Field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Where sealed checkpoints are."""
        return self.scratch / "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What training measured."""

    metrics: Mapping[str, Any]
    gates: Sequence[Gate]
    facts: Mapping[str, Any]
    timings_seconds: Mapping[str, float]
