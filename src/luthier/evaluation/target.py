"""The target, and the 10/20-point rule on how far the best prompt is from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luthier.config import Field, Section
from luthier.errors import DataError
from luthier.evaluation.metrics import METRICS
from luthier.gates import Gate, check

# DECISION.md, "The baseline before the training"
_IMPROVE_WITHIN = 0.10
_TUNE_BEYOND = 0.20
_MINIMUM_ROWS = 100

Advice = Literal["improve-prompt", "fine-tune", "undecided", "too-few-rows"]


class Target(Section):
    """What the model must reach to be of use."""

    metric: Literal[
        "accuracy", "macro_f1", "exact_match", "same_json", "schema_valid", "field_f1"
    ] = Field("accuracy", description="the metric that has to reach it")
    value: float = Field(gt=0, le=1, description="its least useful value, as a share")


@dataclass(frozen=True)
class TargetVerdict:
    """How far the best prompt is from the target; gap = target - value, with its 95 % interval."""

    metric: str
    target: float
    value: float
    gap: float
    gap_interval: tuple[float, float]
    rows: int
    verdict: Advice
    reason: str


def judge_target(summary: Mapping[str, Any], metric: str, target: float) -> TargetVerdict:
    """The 10/20-point rule on the best system.

    Too few rows: below 100, or an interval so wide that it allows both improving the prompt and
    fine-tuning.

    Raises:
        DataError: this task has no such metric from 0 to 1 with an interval.
    """
    best = summary["systems"][summary["best_system"]]
    scores = [name for name in best["intervals"] if METRICS[name].is_score]
    if metric not in scores:
        known = ", ".join(scores)
        raise DataError(f"baseline.target.metric is {metric}; task {summary['task']} has {known}.")
    value, rows = best["metrics"][metric], summary["rows"]
    low, high = (target - end for end in reversed(best["intervals"][metric]))
    gap = target - value
    verdict, reason = _advise(gap, low, high, rows)
    return TargetVerdict(metric, target, value, gap, (low, high), rows, verdict, reason)


def _advise(gap: float, low: float, high: float, rows: int) -> tuple[Advice, str]:
    found = (
        f"{100 * abs(gap):.1f} points {'below' if gap > 0 else 'above'} the target, 95 % interval "
        f"of what is missing {100 * low:.1f} to {100 * high:.1f}"
    )
    if rows < _MINIMUM_ROWS:
        return "too-few-rows", f"{rows} test rows cannot tell; use {_MINIMUM_ROWS} or more"
    if low <= _IMPROVE_WITHIN and high >= _TUNE_BEYOND:
        return "too-few-rows", f"{found}: the interval allows both verdicts; use more test rows"
    if gap <= _IMPROVE_WITHIN:
        return "improve-prompt", f"{found}: within 10 points, a better prompt may do"
    if gap >= _TUNE_BEYOND:
        return (
            "fine-tune",
            f"{found}: 20 points or more, fine-tuning is worth it with labelled data",
        )
    return "undecided", f"{found}: between 10 and 20 points"


def worth_tuning(found: TargetVerdict) -> Gate:
    """The gate of `baseline.require`: nothing is trained where the rule does not say so."""
    return check("worth-tuning", found.verdict, "==", "fine-tune", found.reason)
