"""Where a sweep should look first: ranges by method, model and rows, each with its source.

Rules of thumb: a sweep measures, these only say where to begin. All sources were read in 2026-12.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["lora", "qlora", "full"]

# tinker-cookbook, tinker_cookbook/hyperparam_utils.py get_lr:
# 5e-5 * 10 * (2000 / hidden_size) ** exponent, without the 10 for full fine-tuning.
_FULL_RATE = 5e-5
_LORA_FACTOR = 10  # also LoRA Without Regret (thinkingmachines.ai/blog/lora, 2025-09)
_REFERENCE_HIDDEN_SIZE = 2000
_EXPONENTS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}
# artidoro/qlora, qlora.py's default and README: "For models larger than 13B, we recommend
# adjusting the learning rate" to 1e-4 (arXiv 2305.14314). It has no model below 7B.
_QLORA_RATE, _LARGE_QLORA_RATE = 2e-4, 1e-4
_QLORA_FROM, _LARGE_QLORA_FROM = 5e9, 15e9  # parameters that "7B" begins and "13B" ends with
# huggingface/trl, docs/source/peft_integration.md: 5e-6 with LoRA, a tenth of it without; the same
# in alignment-handbook, recipes/zephyr-7b-beta/dpo/config_qlora.yaml. Small models want more: on
# SmolLM2-135M 4e-5 passes our gates and 1e-4 does not (docs/preferences.md).
_DPO_RATE, _UNKNOWN_DPO_RATE, _SMALL_DPO_RATE = 5e-6, 1e-5, 2e-5
_DPO_FROM = 1e9  # parameters that `_DPO_RATE` begins with
# What docs/evaluation.md measured three rates on, by family and hidden size.
_SMOLLM2_135M = ("llama", 576)
# From low to centre and from centre to high: a little more than a factor of ten in all.
_SPREAD = 3.5
_MANY_ROWS, _VERY_MANY_ROWS = 10_000, 100_000
_TRIALS_A_PARAMETER = 4
_WIDTH = 95


@dataclass(frozen=True)
class Range:
    """The values to search of one field: `spec` as the `sweep:` section has it, and why these."""

    path: str
    spec: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class ModelShape:
    """What is known of the base: `family` is its config.json's `model_type`."""

    family: str | None = None
    hidden_size: int | None = None
    parameters: int | None = None


def suggested_ranges(
    method: Method,
    shape: ModelShape,
    *,
    has_dpo: bool,
    train_rows: int | None,
    fixed: Collection[str] = (),
) -> list[Range]:
    """What matters first, in this order: learning rate, rank, epochs; of dpo rate and beta.

    Args:
        method: of `sft`.
        shape: of the base, as far as it is known.
        has_dpo: whether the config has `dpo`.
        train_rows: of `sft`, None when not known.
        fixed: paths that the config does not allow to vary.
    """
    found = [_sft_rate(method, shape)]
    if method != "full":
        found.append(_rank(train_rows))
    found.append(_epochs(train_rows))
    if has_dpo:
        found += [_dpo_rate(shape), _dpo_beta()]
    return [one for one in found if one.path not in fixed]


def suggested_trials(ranges: Sequence[Range]) -> int:
    """How many candidates. TPE draws the first few at random."""
    return max(8, _TRIALS_A_PARAMETER * len(ranges))


def render_section(
    ranges: Sequence[Range], *, metric: str, prunes: bool, notes: Sequence[str] = ()
) -> str:
    """A `sweep:` section as YAML text with comments.

    Args:
        ranges: what is searched.
        metric: the objective, stage.measure.
        prunes: whether candidates may be ended early, which needs several validation losses.
        notes: sentences for the head.
    """
    lines = ["sweep:"]
    for note in notes:
        lines += _comment(note, "  ")
    lines += [
        f"  objective: {{metric: {metric}}}  # measured on the validation split",
        "  parameters:",
    ]
    for one in ranges:
        lines += [*_comment(one.why, "    "), f"    {one.path}: {_spec(one.spec)}"]
    lines += [f"  trials: {suggested_trials(ranges)}", "  sampler: tpe"]
    if prunes:
        lines.append("  pruning: {kind: median, startup_trials: 3}")
    else:
        lines += [
            "  # to end what falls behind, set sft.evaluate_every_fraction: 0.25 and here:",
            "  # pruning: {kind: median, startup_trials: 3}",
            "  pruning: null",
        ]
    lines += [
        "  # the best by one seed is partly the luckiest: the best three get more seeds",
        "  finalists: {candidates: 3, seeds: 3}",
    ]
    return "\n".join(lines) + "\n"


def _sft_rate(method: Method, shape: ModelShape) -> Range:
    centre, why = _lora_rate(shape)
    match method:
        case "full":
            centre, why = centre / _LORA_FACTOR, f"{why}, without LoRA's factor of 10"
        case "qlora" if shape.parameters is None or shape.parameters >= _QLORA_FROM:
            is_large = (shape.parameters or 0) >= _LARGE_QLORA_FROM
            centre = _LARGE_QLORA_RATE if is_large else _QLORA_RATE
            why = "QLoRA, arXiv 2305.14314: 2e-4 up to 13B, 1e-4 above"
            if shape.parameters is None:
                why += "; this base's size is not known yet"
        case "qlora":
            why += "; QLoRA's paper has no model as small"
    if method == "lora" and (shape.family, shape.hidden_size) == _SMOLLM2_135M:
        why += "; measured on SmolLM2-135M: 1e-3 best, 2e-3 as good and forgets twice as much"
    return Range("sft.learning_rate", _around(centre), f"about {_number(_rounded(centre))}: {why}")


def _lora_rate(shape: ModelShape) -> tuple[float, str]:
    rate = _FULL_RATE * _LORA_FACTOR
    source = "tinker-cookbook hyperparam_utils.get_lr"
    if shape.hidden_size is None:
        return rate, f"{source} at hidden size 2000, since this base's is not known yet"
    family = next((name for name in _EXPONENTS if name in (shape.family or "").lower()), None)
    exponent = _EXPONENTS[family or "llama"]
    why = f"{source} for hidden size {shape.hidden_size}"
    if family is None:
        why += f", as for Llama: {shape.family or 'this family'} is not calibrated there"
    return rate * (_REFERENCE_HIDDEN_SIZE / shape.hidden_size) ** exponent, why


def _rank(rows: int | None) -> Range:
    why = (
        "more rows need more rank (LoRA Without Regret, 2025-09); alpha stays, and with alpha / r "
        "the best rate hardly moves"
    )
    if rows is None:
        return Range("sft.lora.r", {"choice": [8, 16, 32, 64]}, why)
    if rows < _MANY_ROWS:
        return Range("sft.lora.r", {"choice": [4, 8, 16, 32]}, why)
    choice = [8, 16, 32, 64] if rows < _VERY_MANY_ROWS else [32, 64, 128, 256]
    return Range("sft.lora.r", {"choice": choice}, why)


def _epochs(rows: int | None) -> Range:
    most = 2 if rows is not None and rows >= _VERY_MANY_ROWS else 3
    why = f"rule of thumb: 1 to {most}" + (f" with {rows:,} rows" if rows is not None else "")
    return Range("sft.epochs", {"int_uniform": [1, most]}, why)


def _dpo_rate(shape: ModelShape) -> Range:
    if shape.parameters is None:
        centre, why = _UNKNOWN_DPO_RATE, "between small and large, since the size is not known yet"
    elif shape.parameters < _DPO_FROM:
        centre, why = _SMALL_DPO_RATE, "on SmolLM2-135M 4e-5 passes the gates, 1e-4 does not"
    else:
        centre, why = _DPO_RATE, "TRL's guide to PEFT and zephyr-7b-beta's recipe for QLoRA"
    return Range("dpo.learning_rate", _around(centre), f"about {_number(centre)}: {why}")


def _dpo_beta() -> Range:
    why = (
        "0.1 and 0.5 in the paper (arXiv 2305.18290, appendix B); 0.01 in alignment-handbook's "
        "pref_align_scan"
    )
    return Range("dpo.beta", {"log_uniform": [0.01, 0.5]}, why)


def _around(centre: float) -> dict[str, list[float]]:
    return {"log_uniform": [_rounded(centre / _SPREAD), _rounded(centre * _SPREAD)]}


def _rounded(value: float) -> float:
    """To one digit."""
    return float(f"{value:.0e}")


def _spec(spec: Mapping[str, Any]) -> str:
    kind, values = next(iter(spec.items()))
    return f"{{{kind}: [{', '.join(_number(value) for value in values)}]}}"


def _number(value: float) -> str:
    """As people write it: 16, 0.1, 4e-4."""
    if isinstance(value, int) or value >= 0.01:
        return str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent))]
