"""How sure a macro-F1 is, and the change of one, also with few rows of a class.

Resampling the rows alone does not do: a class of which two rows were tested, both answered right,
is always right in every resample. So each class borrows rows that behave as the rows of all
classes together do, and what is resampled is a model whose true macro-F1 is known. How far the
resamples' macro-F1 is from it is how far the measured one may be from the truth (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapters 6.5 and 13).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from luthier.evaluation.statistics import Interval, percentile_interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

# Rows that each class borrows, and rows that are added to those borrowed from: two right and two
# wrong (Agresti and Coull 1998, The American Statistician 52).
_BORROWED = 4
_RESAMPLES = 1000


def macro_f1_interval(
    pairs: "NDArray[np.int64]", labels: int, seed: int, resamples: int = _RESAMPLES
) -> Interval:
    """95 % interval of the macro-F1 that these classes have with all rows there could be.

    `pairs` [row] are the expected label and the predicted one, `labels` for none. The distance is
    taken between arcsines of square roots, which spread alike near 1 and at a half. Simulated
    coverage with 14 classes, the largest 14 times as frequent as the smallest, accuracy 0.5 to
    0.95, 40 to 612 rows: 93 to 98 %, above 97 where 40 rows are nearly all right.
    """
    import numpy as np

    model = _Model(pairs[:, 0], (pairs[:, 1],), labels)
    (found,), (true,) = _resampled(model, seed, resamples)
    low, high = percentile_interval(_stretched(found) - _stretched(true))
    measured = model.macro_f1(0)
    ends = np.clip(_stretched(np.array([measured])) - [high, low], 0, np.pi / 2)
    low, high = (float(np.sin(end) ** 2) for end in ends)
    right = int(model.right[0, : len(pairs)].sum())
    if right == len(pairs):  # no wrong row to resample: as sure as the accuracy is
        low = min(low, wilson_interval(right, right)[0])
    return min(low, measured), max(high, measured)


def macro_f1_change_interval(
    old: "NDArray[np.int64]",
    new: "NDArray[np.int64]",
    labels: int,
    seed: int,
    resamples: int = _RESAMPLES,
) -> Interval:
    """95 % interval of the change of macro-F1 from `old` to `new`, both as `macro_f1_interval`
    has them, row by row the same rows.

    Simulated coverage as above where the systems differ in 5 rows or more; where they differ in
    fewer it is too wide, up to 100 %.
    """
    model = _Model(old[:, 0], (old[:, 1], new[:, 1]), labels)
    (old_found, new_found), (old_true, new_true) = _resampled(model, seed, resamples)
    low, high = percentile_interval((new_found - old_found) - (new_true - old_true))
    measured = model.macro_f1(1) - model.macro_f1(0)
    return min(measured - high, measured), max(measured - low, measured)


def _stretched(share: "NDArray[np.float64]") -> "NDArray[np.float64]":
    import numpy as np

    return np.arcsin(np.sqrt(np.clip(share, 0, 1)))


@dataclass(frozen=True)
class _Model:
    """Rows of which each class keeps n of n + 4 and borrows 4; the same for all `predicted`
    systems. Label K of a prediction is none."""

    expected: "NDArray[np.int64]"
    predicted: "Sequence[NDArray[np.int64]]"
    labels: int

    @cached_property
    def rows(self) -> "NDArray[np.int64]":
        """Rows of each class."""
        import numpy as np

        return np.bincount(self.expected, minlength=self.labels)

    @cached_property
    def kept(self) -> "NDArray[np.float64]":
        """The share of its own rows that each class keeps."""
        return self.rows / (self.rows + _BORROWED)

    @cached_property
    def right(self) -> "NDArray[np.bool_]":
        """[system, row] whether it is right; the four added rows last."""
        import numpy as np

        added = np.array([[True, True, False, False], [True, False, True, False]])
        own = np.array([found == self.expected for found in self.predicted])
        return np.concatenate([own, added[: len(own)]], axis=1)

    @cached_property
    def alike(self) -> "NDArray[np.bool_]":
        """[row] whether all systems say the same; not so in the four added rows."""
        import numpy as np

        same = self.predicted[0] == self.predicted[-1]
        return np.concatenate([same, np.zeros(_BORROWED, dtype=bool)])

    def macro_f1(self, system: int) -> float:
        """Of the rows as they are."""
        import numpy as np

        hits = np.bincount(self.expected[self.right[system, :-_BORROWED]], minlength=self.labels)
        said = np.bincount(self.predicted[system], minlength=self.labels + 1)[:-1]
        return float(_macro(_f1(hits, said + self.rows), self.rows > 0))

    def true_f1(self, system: int) -> "NDArray[np.float64]":
        """F1 of each class in the model itself: in all the rows there could be of it."""
        import numpy as np

        labels, said = self.labels, self.predicted[system]
        borrowed, share = self.rows * (1 - self.kept), self.right[system].mean()
        is_right = self.right[system, :-_BORROWED]
        hits = np.bincount(self.expected[is_right], minlength=labels) * self.kept
        hits += borrowed * share
        # a borrowed wrong answer is any row's; where that would be right, any other label
        wrong = borrowed * (1 - share)
        usual = np.bincount(said, minlength=labels + 1)[:-1] / len(said)
        named = np.bincount(said, weights=self.kept[self.expected], minlength=labels + 1)[:-1]
        named += borrowed * share + (wrong.sum() - wrong) * usual
        named += ((wrong * usual).sum() - wrong * usual) / labels
        return _f1(hits, named + self.rows)


def _resampled(
    model: _Model, seed: int, resamples: int
) -> "tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]":
    """Of each system its macro-F1 in the resamples, and the true one of the same classes."""
    import numpy as np

    generator, size = np.random.default_rng(seed), model.labels
    cells, cell_rows = np.unique(
        np.array([model.expected, *model.predicted]), axis=1, return_counts=True
    )
    classes = np.arange(size)
    shares = np.concatenate(
        [cell_rows * model.kept[cells[0]], model.rows * (1 - model.kept)]
    ) / len(model.expected)
    drawn = generator.multinomial(len(model.expected), shares, size=resamples)
    kept, borrowed = drawn[:, : cells.shape[1]], drawn[:, cells.shape[1] :]
    sample, label = (
        np.repeat(np.tile(one, each), borrowed.ravel())
        for one, each in ((np.repeat(np.arange(resamples), size), 1), (classes, resamples))
    )
    rows = _summed(cells[0], kept, size) + borrowed
    values, truths = [], []
    for system, said in enumerate(_borrowed_answers(model, label, generator)):
        own = cells[system + 1]
        named = _summed(own, kept, size + 1) + _counted(sample, said, resamples, size + 1)
        hits = _summed(np.where(own == cells[0], own, size), kept, size + 1)
        hits += _counted(sample, np.where(said == label, said, size), resamples, size + 1)
        values.append(_macro(_f1(hits[:, :-1], named[:, :-1] + rows), rows > 0))
        truths.append(_macro(model.true_f1(system), rows > 0))
    return values, truths


def _borrowed_answers(
    model: _Model, label: "NDArray[np.int64]", generator: "np.random.Generator"
) -> "list[NDArray[np.int64]]":
    """What each system says to borrowed rows of these classes: right together and wrong alike as
    often as on the rows that there are."""
    import numpy as np

    like = generator.integers(0, model.right.shape[1], len(label))
    answers: list[NDArray[np.int64]] = []
    first = None
    for said, right in zip(model.predicted, model.right, strict=True):
        other = said[generator.integers(0, len(said), len(label))]
        shifted = label + 1 + generator.integers(0, model.labels, len(label))
        wrong = np.where(other == label, shifted % (model.labels + 1), other)
        first = wrong if first is None else first
        answers.append(np.where(right[like], label, np.where(model.alike[like], first, wrong)))
    return answers


def _summed(
    labels: "NDArray[np.int64]", counts: "NDArray[np.int64]", size: int
) -> "NDArray[np.float64]":
    """[sample, label]: counts [sample, cell] of the cells of each label."""
    import numpy as np

    places = np.arange(len(counts))[:, None] * size + labels
    total = np.bincount(places.ravel(), weights=counts.ravel(), minlength=len(counts) * size)
    return np.asarray(total.reshape(len(counts), size), dtype=np.float64)


def _counted(
    sample: "NDArray[np.int64]", label: "NDArray[np.int64]", samples: int, size: int
) -> "NDArray[np.float64]":
    """[sample, label]: how many rows."""
    import numpy as np

    total = np.bincount(sample * size + label, minlength=samples * size)
    return total.reshape(samples, size).astype(np.float64)


def _f1(hits: "NDArray[Any]", both: "NDArray[Any]") -> "NDArray[np.float64]":
    """F1 of hits, and of rows that expect the class and rows that were given it, added up."""
    import numpy as np

    return np.asarray(2 * hits / np.maximum(both, 1e-12))


def _macro(f1: "NDArray[np.float64]", present: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """Mean F1 over the classes that have rows."""
    import numpy as np

    return np.asarray((f1 * present).sum(axis=-1) / present.sum(axis=-1))
