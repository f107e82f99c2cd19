"""Every candidate of a sweep against every other: p-values that allow for all of it.

The candidate that comes first was chosen by the same rows, so any two might have been the two
that are looked at: Holm's method (1979) runs over all pairs. Over the comparisons with the first
alone it would not do: of 8 equal candidates it called one worse in 7 to 9 % of simulated sweeps,
of 20 in 14 to 17 %, of 50 in 32 %; over all pairs in 2 to 3 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.evaluation.statistics import CONFIDENCE, Interval, holm, paired_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAME = 1e-12  # a difference as large as rounding makes


@dataclass(frozen=True)
class Pairs:
    """All comparisons. `p_values` [candidate, candidate] are adjusted for all of them, `raw` are
    not; `halves` are half the widths of the differences' 95 % intervals, or, where rows alone
    tell, `only` counts the rows that the first of a pair has right and the second has not."""

    raw: "NDArray[np.float64]"
    p_values: "NDArray[np.float64]"
    halves: "NDArray[np.float64] | None"
    only: "NDArray[np.int64] | None"

    def interval(self, new: int, old: int, difference: float, rows: int) -> Interval:
        """95 % interval of `new` minus `old`, of this pair alone."""
        if self.only is not None:
            return paired_interval(int(self.only[new, old]), int(self.only[old, new]), rows)
        assert self.halves is not None
        half = float(self.halves[new, old])
        return difference - half, difference + half


def pooled_deviation(values_by_candidate: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """What seeds alone do to a value: standard deviation and its degrees of freedom, pooled over
    the candidates with two seeds or more; None where there is none of these."""
    from statistics import variance

    several = [values for values in values_by_candidate if len(values) > 1]
    if not several:
        return None
    freedom = sum(len(values) - 1 for values in several)
    total = sum((len(values) - 1) * variance(values) for values in several)
    return math.sqrt(total / freedom), freedom


def by_rows(right: "NDArray[np.bool_]") -> Pairs:
    """Exact McNemar tests of [candidate, row], one seed each and nothing known of other seeds."""
    import numpy as np
    from scipy.stats import binom

    hits = right.astype(np.float64)
    only = (hits @ (1 - hits).T).round().astype(np.int64)
    differing = only + only.T
    raw = np.minimum(1.0, 2 * binom.cdf(np.minimum(only, only.T), differing, 0.5))
    return Pairs(raw, _adjusted(raw), None, only)


def by_rows_and_seeds(
    shares: "NDArray[np.float64]", seeds: Sequence[int], deviation: tuple[float, int]
) -> Pairs:
    """Student's t tests of [candidate, row], each row's mean over so many seeds.

    Rows and seeds are both drawn, crossed, so the variance of a difference of means is

        (sum of squared row differences + 2) / rows**2
        + seed variance * (1 / seeds + 1 / other's seeds)

    (Bouthillier et al. 2021, Accounting for Variance in Machine Learning Benchmarks, arXiv
    2103.03098, on why both count), with Satterthwaite's degrees of freedom (1946, Biometrics
    Bulletin 2). The part of the rows is McNemar's, which holds where there is no difference; with
    one row more in each direction it is near the exact test also where few rows differ.

    What a seed does to single rows is in both parts, so the test is on the safe side: false finds
    at 5 % in 1 to 5 % of simulated pairs with 3 seeds each, in 6 % where there are two each and
    seeds do most of it. The pooled seed variance counts for a candidate with a single seed too.
    """
    import numpy as np

    rows, products = shares.shape[1], shares @ shares.T
    own = np.diagonal(products)
    from_rows = (own[:, None] + own - 2 * products + 2) / rows**2
    return _student(shares.mean(axis=1), from_rows, max(1, rows - 1), seeds, deviation)


def by_seeds(
    means: "NDArray[np.float64]", seeds: Sequence[int], deviation: tuple[float, int]
) -> Pairs:
    """Student's t tests of the means of so many seeds, with the pooled seed variance."""
    import numpy as np

    return _student(means, np.zeros((len(means), len(means))), 1, seeds, deviation)


def _student(
    means: "NDArray[np.float64]",
    from_rows: "NDArray[np.float64]",
    rows_freedom: int,
    seeds: Sequence[int],
    deviation: tuple[float, int],
) -> Pairs:
    import numpy as np
    from scipy.stats import t

    inverse = 1 / np.array(seeds)
    from_seeds = deviation[0] ** 2 * (inverse[:, None] + inverse)
    variance = from_rows + from_seeds
    below = from_rows**2 / rows_freedom + from_seeds**2 / deviation[1]
    is_known = variance > 0
    freedom = np.divide(variance**2, below, where=below > 0, out=np.ones_like(below))
    differences = np.abs(means[:, None] - means)
    # without any spread there is no t: equal, or surely not
    statistic = np.divide(
        differences,
        np.sqrt(variance),
        where=is_known,
        out=np.where(differences > _SAME, np.inf, 0.0),
    )
    raw = 2 * t.sf(statistic, freedom)
    halves = t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
    return Pairs(raw, _adjusted(raw), halves, None)


def _adjusted(raw: "NDArray[np.float64]") -> "NDArray[np.float64]":
    import numpy as np

    upper = np.triu_indices(len(raw), 1)
    adjusted = np.ones_like(raw)
    adjusted[upper] = holm(raw[upper].tolist())
    return np.minimum(adjusted, adjusted.T)
