"""Metrics of tasks with labels."""

from typing import TYPE_CHECKING, Any

from luthier.evaluation.f1_intervals import macro_f1_change_interval, macro_f1_interval
from luthier.evaluation.registry import Answered, metric, share_interval
from luthier.evaluation.statistics import Interval, mean_share_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OTHER = "other"  # the column of answers in which no label was read


@metric("classification", interval=share_interval)
def accuracy(answered: Answered) -> float:
    """Share of rows whose predicted label is the expected one. Interval: Wilson."""
    return answered.correct / len(answered.answers)


def _micro_f1_interval(answered: Answered) -> Interval:
    hits = [2.0 * answer.correct for answer in answered.answers]
    return mean_share_interval(hits, [1.0 + one for one in _is_read(answered)])


@metric("classification", interval=_micro_f1_interval)
def micro_f1(answered: Answered) -> float:
    """F1 of all classes' rows put together; the accuracy where every answer names a label.

    An answer that names none costs recall, not precision. scikit-learn's, `labels` = all labels.
    Interval: Wilson with the effective number of rows.
    """
    return 2 * answered.correct / (len(answered.answers) + sum(_is_read(answered)))


def _is_read(answered: Answered) -> list[bool]:
    return [answer.predicted in answered.labels for answer in answered.answers]


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
