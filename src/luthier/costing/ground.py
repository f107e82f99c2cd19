"""What a reckoning stands on: the config, its cost section, and what is there already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from luthier.config import RunConfig
from luthier.costing.speed import Speed, prompted_speed, tuned_speed
from luthier.errors import ConfigError
from luthier.estimate.architecture import Architecture, read_architecture
from luthier.estimate.cost_section import CostSection
from luthier.foretelling import model_config
from luthier.planning import PlannedStep
from luthier.store import Artifact


@dataclass
class Ground:
    """`notes` grows: what a reader must know of the numbers beside where they are from."""

    config: RunConfig
    section: CostSection
    steps: Sequence[PlannedStep]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def artifacts(self) -> Mapping[str, Artifact]:
        """By stage."""
        return {step.stage: step.artifact for step in self.steps if step.artifact is not None}

    @cached_property
    def tuned(self) -> Speed | None:
        """Measured of the tuned model."""
        return tuned_speed(self.artifacts)

    @cached_property
    def prompted(self) -> Speed | None:
        """Measured of the baseline's best prompt."""
        return prompted_speed(self.artifacts)

    @cached_property
    def architecture(self) -> Architecture | None:
        """Of the base; None before it is here.

        Raises:
            ModelError: no prediction is known for this kind of model.
        """
        base = self.artifacts.get("base")
        found = model_config(self.config, None if base is None else base.path)
        return None if found is None else read_architecture(found)

    def unknown(self, said: str) -> ConfigError:
        """The error for a number that nobody gave and nothing measured."""
        return ConfigError(f"{self.config.path}: {said}")
