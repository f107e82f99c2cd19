"""`luthier sweep --suggest`: a `sweep:` section for a config that has none yet."""

from collections.abc import Mapping
from typing import Any

from luthier.advice.ranges import ModelShape, render_section, suggested_ranges
from luthier.config import RunConfig
from luthier.data.section import PrepareSection
from luthier.errors import ConfigError, ModelError
from luthier.estimate.architecture import read_architecture
from luthier.evaluation.metrics import PRIMARY
from luthier.training.sft_section import SFTSection

_HEAD = (
    "Suggested by luthier sweep --suggest: rules of thumb to begin with. Change what you know "
    "better."
)
_UNKNOWN_BASE = (
    "The base is not here yet, so its size is not known: luthier base CONFIG, then suggest again."
)
_WHOLE_REPLIES = (
    "exact_match counts replies that are the same to the letter. Where good replies differ in "
    "their words, evaluate.chrf tells more, or set prepare.answer_regex."
)


def suggest(
    config: RunConfig, config_json: Mapping[str, Any] | None, train_rows: int | None = None
) -> str:
    """A `sweep:` section as YAML text, with the reason for each range as a comment.

    Args:
        config: the run config.
        config_json: the base's `config.json`, None where it is not here yet.
        train_rows: of the prepared dataset; None: what `prepare.limit` says, if it does.

    Raises:
        ConfigError: the config has no sft, or nothing that candidates can be chosen by.
    """
    sft = config.sections.get("sft")
    if not isinstance(sft, SFTSection):
        raise ConfigError(f"{config.path}: a sweep needs the section sft, which is not there.")
    ranges = suggested_ranges(
        sft.method,
        model_shape(config_json) if config_json is not None else ModelShape(),
        has_dpo="dpo" in config.sections,
        train_rows=train_rows if train_rows is not None else _limit(config),
        fixed=_fixed(sft),
    )
    return render_section(
        ranges,
        metric=_metric(config),
        prunes=getattr(sft, "evaluate_every_fraction", None) is not None,
        notes=[_HEAD, *([_UNKNOWN_BASE] if config_json is None else []), *_about_metric(config)],
    )


def model_shape(config_json: Mapping[str, Any]) -> ModelShape:
    """Family, hidden size and parameters, as far as `config.json` says them in a known way."""
    text = dict(config_json.get("text_config") or config_json)
    family = text.get("model_type") or config_json.get("model_type")
    try:
        architecture = read_architecture(config_json)
    except ModelError:  # experts, state spaces: no count by formula
        return ModelShape(family, text.get("hidden_size"))
    return ModelShape(architecture.model_type, architecture.hidden, architecture.parameters)


def _fixed(sft: SFTSection) -> list[str]:
    """Paths that this section does not let vary."""
    fixed = []
    if sft.max_steps is not None:
        fixed.append("sft.epochs")
    if sft.start_from is not None:
        fixed.append("sft.lora.r")
    return fixed


def _metric(config: RunConfig) -> str:
    prepare = config.sections.get("prepare")
    if "evaluate" in config.sections and isinstance(prepare, PrepareSection):
        return f"evaluate.{PRIMARY[prepare.task]}"
    if "dpo" in config.sections:
        raise ConfigError(
            f"{config.path}: losses of dpo under different beta cannot be compared, so a sweep "
            "of it needs a score. Add evaluate: {}"
        )
    return "sft.validation_loss"


def _about_metric(config: RunConfig) -> list[str]:
    prepare = config.sections.get("prepare")
    if "evaluate" not in config.sections or not isinstance(prepare, PrepareSection):
        return []
    by_letter = prepare.task in ("chat", "completion") and prepare.answer_regex is None
    return [_WHOLE_REPLIES] if by_letter else []


def _limit(config: RunConfig) -> int | None:
    prepare = config.sections.get("prepare")
    return prepare.limit.get("train") if isinstance(prepare, PrepareSection) else None
