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
from luthier.training.dpo_section import DPOSection
from luthier.training.prediction import (
    Prediction,
    RowNumbers,
    hardware_named,
    numbers_for,
    predict,
    unknown_numbers,
)
from luthier.training.section import TrainingSection
from luthier.training.sft_section import SFTSection

DEFAULT_LENGTH_TOKENS = 2048
ROWS_OF = {"sft": "prepare", "dpo": "preferences"}


def foretell(
    config: RunConfig, steps: Sequence[PlannedStep], hardware: str | None
) -> dict[str, Prediction | str]:
    """By stage that trains: the prediction, or a sentence when it cannot be told yet.

    Args:
        config: the run config.
        steps: its plan, for the artifacts that are there.
        hardware: instead of the sections' own.

    Raises:
        ConfigError: the hardware or the model's architecture is not known.
    """
    sections = training_sections(config)
    if not sections:
        if hardware is not None:
            raise ConfigError(
                f"{config.path}: --on {hardware} is about the sections sft and dpo, not here."
            )
        return {}
    here = {step.stage: step.artifact.path for step in steps if step.artifact is not None}
    model = model_config(config, here.get("base"))
    if model is None:
        said = f"memory: known once the base is here. Run: luthier base {config.path}"
        return {next(iter(sections)): said}
    return {
        stage: predict(
            model,
            section,
            _numbers(config, section, here.get(ROWS_OF[stage])),
            hardware_named(hardware or section.hardware),
        )
        for stage, section in sections.items()
    }


def training_sections(config: RunConfig) -> dict[str, TrainingSection]:
    """Those of stages that train, dpo's with what it takes from sft."""
    found: dict[str, TrainingSection] = {}
    sft, dpo = config.sections.get("sft"), config.sections.get("dpo")
    if isinstance(sft, SFTSection):
        found["sft"] = sft
    if isinstance(dpo, DPOSection):
        found["dpo"] = dpo
        if isinstance(sft, SFTSection) and sft.method != "full" and dpo.reference == "sft":
            found["dpo"] = dpo.on_from(sft)
    return found


def _numbers(config: RunConfig, section: TrainingSection, dataset: Path | None) -> RowNumbers:
    if dataset is not None:
        return numbers_for(section, dataset)
    prepared = config.sections.get(ROWS_OF[section.stage_name])
    return unknown_numbers(getattr(prepared, "max_length_tokens", DEFAULT_LENGTH_TOKENS))


def model_config(config: RunConfig, base: Path | None) -> Mapping[str, Any] | None:
    """config.json of the base, or of the folder that it will be copied from."""
    section = config.sections.get("base")
    if base is None and isinstance(section, BaseSection):
        source = find_source(section.model, section.revision)
        base = source.path if source.kind == "folder" else None
    if base is None:
        return None
    loaded: Mapping[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return loaded
