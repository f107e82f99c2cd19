"""What a run config asks for in vain, said before anything is trained."""

import json
from collections.abc import Sequence
from pathlib import Path

from luthier.config import RunConfig
from luthier.errors import ConfigError
from luthier.evaluation.section import EvaluateSection
from luthier.serving.export_section import ExportSection
from luthier.serving.lint import refusals, unexportable
from luthier.training.sft_section import SFTSection


def refuse_unexportable(config: RunConfig) -> None:
    """F32: raises ConfigError for what an export target would refuse of what is to be trained."""
    sft, export = config.sections.get("sft"), config.sections["export"]
    if not isinstance(sft, SFTSection) or not isinstance(export, ExportSection):
        return
    lora = None if sft.method == "full" else sft.lora
    prompt = getattr(config.sections.get("prepare"), "system_prompt", None)
    _raise(config, refusals(sft.method, lora, export.targets, prompt))


def refuse_architecture(config: RunConfig, base: Path) -> None:
    """F32: raises ConfigError where an export target does not know the base's architecture."""
    export = config.sections.get("export")
    if isinstance(export, ExportSection):
        content = json.loads((base / "config.json").read_text("utf-8"))
        _raise(config, unexportable(content, export.targets))


def refuse_full(config: RunConfig) -> None:
    """Raises ConfigError where dpo would go on with an adapter that sft does not make."""
    sft = config.sections.get("sft")
    if isinstance(sft, SFTSection) and sft.method == "full":
        raise ConfigError(
            f"{config.path}: dpo goes on with an adapter, and sft.method: full makes a "
            "whole model. Set sft.method: lora or qlora."
        )


def refuse_unjudged(config: RunConfig, stages: Sequence[str]) -> None:
    """Raises ConfigError where what is merged or served was only looked at on validation rows."""
    evaluate = config.sections.get("evaluate")
    if not isinstance(evaluate, EvaluateSection) or evaluate.split == "test":
        return
    served = [stage for stage in stages if stage in ("merge", "export", "accept")]
    if served:
        raise ConfigError(
            f"{config.path}: evaluate.split: {evaluate.split} is for choosing between candidates; "
            f"{' and '.join(served)} come after the test rows were answered. Set evaluate.split: "
            f"test, or stop before: luthier run {config.path} --until evaluate"
        )


def _raise(config: RunConfig, problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(f"{config.path}: {one}." for one in problems))
