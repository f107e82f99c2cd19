"""How each class fared between two systems: its F1, with intervals that allow for many classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.evaluation.answers import Answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 4000
_AT_ONCE = 250  # bounds memory: resamples x rows


@dataclass(frozen=True)
class ClassChange:
    """F1 of one class in two systems' answers to the same rows; `rows` expect it.

    `low` and `high` hold the difference with confidence 1 - alpha for all classes together.
    """

    label: str
    rows: int
    old_f1: float
    new_f1: float
    low: float
    high: float


def class_changes(
    old: Sequence[Answer],
    new: Sequence[Answer],
    labels: Sequence[str],
    *,
    alpha: float,
    seed: int,
) -> list[ClassChange]:
    """Every class that has rows, in the labels' order.

    F1 and not recall: a baseline that says one label to everything has all of its recall.
    Intervals: percentile bootstrap over rows, the same rows for both systems, at level alpha over
    the number of classes (Bonferroni), seeded.
    """
    import numpy as np

    present = [label for label in labels if any(answer.expected == label for answer in new)]
    hits = [_indicators(answers, present) for answers in (old, new)]
    ones = np.ones((1, len(new)))
    before, after = (_f1(ones, found)[0] for found in hits)
    differences = np.concatenate(
        [_f1(weights, hits[1]) - _f1(weights, hits[0]) for weights in _weights(len(new), seed)]
    )
    tail = alpha / (2 * len(present))
    low, high = np.quantile(differences, [tail, 1 - tail], axis=0)
    rows = hits[1].expected.sum(axis=0)
    return [
        ClassChange(
            label, int(rows[c]), float(before[c]), float(after[c]), float(low[c]), float(high[c])
        )
        for c, label in enumerate(present)
    ]


@dataclass(frozen=True)
class _Indicators:
    """[row, class]: whether it is expected, predicted, both."""

    expected: "NDArray[np.float64]"
    predicted: "NDArray[np.float64]"
    both: "NDArray[np.float64]"


def _indicators(answers: Sequence[Answer], labels: Sequence[str]) -> _Indicators:
    import numpy as np

    expected = np.array([[one.expected == label for label in labels] for one in answers])
    predicted = np.array([[one.predicted == label for label in labels] for one in answers])
    return _Indicators(
        *(found.astype(float) for found in (expected, predicted, expected & predicted))
    )


def _weights(rows: int, seed: int) -> "Iterator[NDArray[np.int64]]":
    """How often each row is drawn, some resamples at a time."""
    import numpy as np

    generator = np.random.default_rng(seed)
    for _ in range(_RESAMPLES // _AT_ONCE):
        yield generator.multinomial(rows, np.full(rows, 1 / rows), size=_AT_ONCE)


def _f1(weights: "NDArray[np.floating | np.integer]", found: _Indicators) -> "NDArray[np.float64]":
    import numpy as np

    counted = weights @ found.expected + weights @ found.predicted
    f1: NDArray[np.float64] = 2 * (weights @ found.both) / np.maximum(counted, 1)
    return f1
