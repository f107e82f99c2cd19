"""evaluation.json: the metrics of every system, and what one can conclude from them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.data.summary import DatasetInfo
from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.metrics import METRICS, PRIMARY, Answered, measure
from luthier.evaluation.statistics import PairedTest
from luthier.store.files import write_atomically

EVALUATION_NAME = "evaluation.json"

# DECISION.md, "The baseline before the training"
_IMPROVE_WITHIN = 0.10
_TUNE_BEYOND = 0.20
_MINIMUM_ROWS = 100

Advice = Literal["improve-prompt", "fine-tune", "undecided", "too-few-rows"]


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


def summarize(
    info: DatasetInfo,
    answers: Mapping[str, Sequence[Answer]],
    seed: int,
    only_to_compare: Collection[str] = (),
) -> dict[str, Any]:
    """The part of evaluation.json that every evaluation has.

    `best_system` has the highest primary metric; of equal ones the first. It is none of those
    that are `only_to_compare`.
    """
    primary = PRIMARY[info.task]
    systems = {
        name: {
            **measure(Answered(found, info.labels, seed), info.task),
            "truncated": sum(answer.stop_reason == "length" for answer in found),
            "unread": sum(answer.predicted is None for answer in found),
        }
        for name, found in answers.items()
    }
    return {
        "task": info.task,
        "split": "test",
        "rows": len(next(iter(answers.values()))),
        "primary_metric": primary,
        "best_system": max(
            (name for name in systems if name not in only_to_compare),
            key=lambda name: systems[name]["metrics"][primary],
        ),
        "systems": systems,
    }


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
        f"{100 * gap:.1f} points below the target, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
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


def write_summary(
    folder: Path,
    summary: Mapping[str, Any],
    *,
    target: TargetVerdict | None = None,
    paired_test: PairedTest | None = None,
) -> None:
    """Write evaluation.json."""
    whole = {
        **summary,
        "target": asdict(target) if target else None,
        "paired_test": asdict(paired_test) if paired_test else None,
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / EVALUATION_NAME, text + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """evaluation.json of an evaluation artifact.

    Raises:
        DataError: it is missing or not JSON.
    """
    path = folder / EVALUATION_NAME
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an evaluation of Luthier ({error}).") from error
    return found


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps: the numbers of each system that are a single value."""
    return {
        "best_system": summary["best_system"],
        **{
            name: {
                key: value for key, value in system["metrics"].items() if isinstance(value, float)
            }
            for name, system in summary["systems"].items()
        },
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """One line a system for the terminal."""
    primary = summary["primary_metric"]
    lines = []
    for name, system in summary["systems"].items():
        low, high = system["intervals"][primary]
        lines.append(
            f"  {name}: {primary} {system['metrics'][primary]:.3f} [{low:.3f}, {high:.3f}], "
            f"{system['truncated']} of {summary['rows']} answers cut off"
        )
    return lines
