"""`luthier plan`: what the training of a config will take, from what is there already."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.config import RunConfig
from luthier.errors import ConfigError
from luthier.models.sources import find_source
from luthier.planning import PlannedStep
from luthier.stages.base import BaseSection
from luthier.training.prediction import (
    Prediction,
    hardware_named,
    numbers_of,
    predict,
    unknown_numbers,
)
from luthier.training.sft_section import SFTSection

DEFAULT_LENGTH_TOKENS = 2048


def foretell(
    config: RunConfig, steps: Sequence[PlannedStep], hardware: str | None
) -> Prediction | str | None:
    """The prediction for the config's `sft`; a sentence when it cannot be told yet, None without
    that section.

    Args:
        config: the run config.
        steps: its plan, for the artifacts that are there.
        hardware: instead of the section's own.

    Raises:
        ConfigError: the hardware or the model's architecture is not known.
    """
    section = config.sections.get("sft")
    if not isinstance(section, SFTSection):
        if hardware is not None:
            raise ConfigError(
                f"{config.path}: --on {hardware} is about the section sft, not here."
            )
        return None
    here = {step.stage: step.artifact.path for step in steps if step.artifact is not None}
    model = _model_config(config, here.get("base"))
    if model is None:
        return f"memory: known once the base is here. Run: luthier base {config.path}"
    if "prepare" in here:
        numbers = numbers_of(here["prepare"])
    else:
        numbers = unknown_numbers(
            getattr(config.sections.get("prepare"), "max_length_tokens", 2048)
        )
    return predict(model, section, numbers, hardware_named(hardware or section.hardware))


def _model_config(config: RunConfig, base: Path | None) -> Mapping[str, Any] | None:
    """config.json of the base, or of the folder that it will be copied from."""
    section = config.sections.get("base")
    if base is None and isinstance(section, BaseSection):
        source = find_source(section.model, section.revision)
        base = source.path if source.kind == "folder" else None
    if base is None:
        return None
    loaded: Mapping[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return loaded
