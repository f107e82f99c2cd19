"""Metrics: one decorated function each, from the answers of one system to a JSON value."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from luthier.data.rows import Task
from luthier.evaluation.answers import Answer
from luthier.evaluation.f1_intervals import macro_f1_change_interval, macro_f1_interval
from luthier.evaluation.statistics import Interval, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OTHER = "other"  # the column of answers in which no label was read
PRIMARY: dict[Task, str] = {
    "classification": "accuracy",
    "extraction": "exact_match",
    "chat": "exact_match",
    "grounded": "exact_match",
    "text": "exact_match",
    "completion": "exact_match",
}
_FREE: tuple[Task, ...] = ("extraction", "chat", "grounded", "completion", "text")


@dataclass(frozen=True)
class Answered:
    """The answers of one system, the labels they are about (none for free text), and the seed."""

    answers: Sequence[Answer]
    labels: Sequence[str]
    seed: int

    @cached_property
    def correct(self) -> int:
        """Rows answered correctly."""
        return sum(answer.correct for answer in self.answers)

    @cached_property
    def pairs(self) -> "NDArray[np.int64]":
        """Expected and predicted label index of each row; the last column index is `other`."""
        import numpy as np

        index = {label: place for place, label in enumerate(self.labels)}
        other = len(self.labels)
        return np.array(
            [
                (index[answer.expected], index.get(answer.predicted or "", other))
                for answer in self.answers
            ],
            dtype=np.int64,
        )

    @cached_property
    def confusion(self) -> "NDArray[np.int64]":
        """Counts [label expected, label predicted or other]."""
        return _confusion(self.pairs, len(self.labels))


Measure = Callable[[Answered], Any]


@dataclass(frozen=True)
class Metric:
    """A metric, the tasks it is for, and its 95 % interval where it has one."""

    name: str
    tasks: frozenset[Task]
    measure: Measure
    interval: Callable[[Answered], Interval] | None


METRICS: dict[str, Metric] = {}


def metric(
    *tasks: Task, interval: Callable[[Answered], Interval] | None = None
) -> Callable[[Measure], Measure]:
    """Register a function under its own name for these tasks."""

    def register(function: Measure) -> Measure:
        METRICS[function.__name__] = Metric(
            function.__name__, frozenset(tasks), function, interval
        )
        return function

    return register


def measure(answered: Answered, task: Task) -> dict[str, Any]:
    """`{metrics: {name: value}, intervals: {name: [low, high]}}` of a task, JSON values only."""
    chosen = [found for found in METRICS.values() if task in found.tasks]
    return {
        "metrics": {found.name: found.measure(answered) for found in chosen},
        "intervals": {
            found.name: list(found.interval(answered)) for found in chosen if found.interval
        },
    }


def _share_interval(answered: Answered) -> Interval:
    return wilson_interval(answered.correct, len(answered.answers))


@metric("classification", interval=_share_interval)
def accuracy(answered: Answered) -> float:
    """Share of rows whose predicted label is the expected one. Interval: Wilson."""
    return answered.correct / len(answered.answers)


@metric(*_FREE, interval=_share_interval)
def exact_match(answered: Answered) -> float:
    """Share of answers equal to the reply, blanks at the ends aside. Interval: Wilson."""
    return answered.correct / len(answered.answers)


def _f1_interval(answered: Answered) -> Interval:
    return macro_f1_interval(answered.pairs, len(answered.labels), answered.seed)


@metric("classification", interval=_f1_interval)
def macro_f1(answered: Answered) -> float:
    """Mean F1 of the classes that have rows; scikit-learn's, `labels` = those classes.

    Interval: resampled, of all classes together where one has few rows, seeded.
    """
    return _macro_f1(answered.confusion)


def macro_f1_change(before: Answered, after: Answered) -> dict[str, Any]:
    """Macro-F1 of two systems' answers to the same rows and their difference, with intervals.

    Intervals: as macro_f1's, the difference's on the same rows of both, seeded.
    """
    old, new = macro_f1(before), macro_f1(after)
    return {
        "old": old,
        "old_interval": list(_f1_interval(before)),
        "new": new,
        "new_interval": list(_f1_interval(after)),
        "difference": new - old,
        "interval": list(
            macro_f1_change_interval(before.pairs, after.pairs, len(before.labels), before.seed)
        ),
    }


@metric("classification")
def exact_answers(answered: Answered) -> float:
    """Share of answers that are the expected label itself, also where the reading is lenient."""
    same = sum(
        answer.answer.strip().casefold() == answer.expected.strip().casefold()
        for answer in answered.answers
    )
    return same / len(answered.answers)


@metric("classification")
def per_class(answered: Answered) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and rows of each class; 0 where there is nothing to divide by."""
    precision, recall, f1 = _scores(answered.confusion)
    support = answered.confusion.sum(axis=1)
    return {
        label: {
            "precision": float(precision[place]),
            "recall": float(recall[place]),
            "f1": float(f1[place]),
            "rows": int(support[place]),
        }
        for place, label in enumerate(answered.labels)
    }


@metric("classification")
def confusion(answered: Answered) -> dict[str, Any]:
    """Counts: a row for each expected label, a column for each predicted one, and `other`."""
    return {
        "rows": list(answered.labels),
        "columns": [*answered.labels, OTHER],
        "counts": answered.confusion.tolist(),
    }


@metric("extraction")
def key_accuracy(answered: Answered) -> dict[str, dict[str, Any]]:
    """Of each key of the expected objects: the share of rows whose answer has its value there, and
    its 95 % interval (Wilson). Empty where an expected reply is no JSON object."""
    return {
        key: {
            "share": sum(hits) / len(hits),
            "interval": list(wilson_interval(sum(hits), len(hits))),
            "rows": len(hits),
        }
        for key, hits in key_hits(answered.answers).items()
    }


def key_hits(answers: Sequence[Answer]) -> dict[str, list[bool]]:
    """Of each key of the expected objects: whether each answer has the expected value there, in
    the order of those rows that expect it."""
    hits: dict[str, list[bool]] = {}
    for answer in answers:
        expected, found = json_object(answer.expected), json_object(answer.answer)
        if expected is None:
            return {}
        for key, value in expected.items():
            hits.setdefault(key, []).append(found is not None and found.get(key) == value)
    return hits


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@metric(*_FREE)
def reference_nats_per_token(answered: Answered) -> float | None:
    """Negative log-likelihood of the reference replies, their stop tokens included, per token."""
    tokens = sum(answer.reference_tokens or 0 for answer in answered.answers)
    total = sum(answer.reference_log_probability or 0.0 for answer in answered.answers)
    return -total / tokens if tokens else None


def _confusion(pairs: "NDArray[np.int64]", labels: int) -> "NDArray[np.int64]":
    import numpy as np

    flat = np.bincount(pairs[:, 0] * (labels + 1) + pairs[:, 1], minlength=labels * (labels + 1))
    return flat.reshape(labels, labels + 1)


def _scores(counts: "NDArray[np.int64]") -> "tuple[NDArray[np.float64], ...]":
    import numpy as np

    labels = counts.shape[0]
    hits = np.diagonal(counts).astype(np.float64)
    predicted, expected = counts.sum(axis=0)[:labels], counts.sum(axis=1)
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(expected, 1),
        2 * hits / np.maximum(predicted + expected, 1),
    )


def _macro_f1(counts: "NDArray[np.int64]") -> float:
    present = counts.sum(axis=1) > 0
    return float(_scores(counts)[2][present].mean())
