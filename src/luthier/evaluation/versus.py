"""The tuned model against the best prompted baseline, on the same rows (F33)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.evaluation.answers import Answer, read_answers
from luthier.evaluation.statistics import PairedTest, compare
from luthier.evaluation.summary import read_summary
from luthier.evaluation.target import Target
from luthier.gates import Gate, check

LINEAR = "tf-idf/linear"  # a system that is no prompt


@dataclass(frozen=True)
class Baseline:
    """What is left to beat: the best prompted system, its answers, and the target; and what a
    linear model answers, where labels are wanted."""

    name: str
    answers: Sequence[Answer]
    target: Target | None
    linear: Sequence[Answer] | None = None


def read_baseline(folder: Path) -> Baseline:
    """The best system of a baseline artifact.

    Raises:
        DataError: it is no evaluation of this version of Luthier.
    """
    summary = read_summary(folder)
    name, answers = summary["best_system"], read_answers(folder)
    return Baseline(name, answers[name], _target(summary), answers.get(LINEAR))


def _target(summary: dict[str, Any]) -> Target | None:
    found = summary.get("target")
    return Target(metric=found["metric"], value=found["target"]) if found else None


def compare_rows(
    new: Sequence[Answer], old: Sequence[Answer], *, old_name: str, alpha: float
) -> PairedTest:
    """The paired test.

    Raises:
        DataError: the two did not answer the same rows.
    """
    if [answer.id for answer in new] != [answer.id for answer in old]:
        raise DataError(
            f"{old_name} answered {len(old)} rows, this evaluation {len(new)}, and they are not "
            "the same. Give limit_rows of both the same value, or run the other one on this "
            "dataset too."
        )
    return compare(
        [answer.correct for answer in new],
        [answer.correct for answer in old],
        alpha=alpha,
    )


def beats_baseline(paired: PairedTest, new: str, old: str) -> Gate:
    """F33."""
    low, high = paired.interval
    return check(
        "beats-baseline",
        paired.verdict,
        "==",
        "better",
        f"{new} {paired.new_accuracy:.3f}, {old} {paired.old_accuracy:.3f} on {paired.rows} rows; "
        f"difference {paired.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        f"exact McNemar p {paired.p_value:.2g}; differences below "
        f"{paired.minimum_detectable_difference:.3f} are likely to stay unseen",
    )
