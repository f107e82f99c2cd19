"""How sure a number is: intervals, paired tests, and when the rows are too few to tell (F35)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
_POWER = 0.8
_RESAMPLES = 10_000

Interval = tuple[float, float]
PairedVerdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same rows. Differences are new minus old, as shares of the rows.

    `minimum_detectable_difference`: a true difference this large would be found in 4 of 5 tries
    with these rows; a smaller one is likely to stay unseen.
    """

    rows: int
    new_accuracy: float
    old_accuracy: float
    difference: float
    interval: Interval
    only_new_correct: int
    only_old_correct: int
    p_value: float
    minimum_detectable_difference: float
    verdict: PairedVerdict


def wilson_interval(successes: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), both ends within 0 to 1."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p_value(only_new: int, only_old: int) -> float:
    """Exact two-sided McNemar test: the rows where the systems differ as fair coin tosses."""
    from scipy.stats import binomtest

    if only_new + only_old == 0:
        return 1.0
    return float(binomtest(only_new, only_new + only_old, 0.5).pvalue)


def paired_interval(only_new: int, only_old: int, rows: int, seed: int) -> Interval:
    """Percentile bootstrap over rows of the difference in accuracy.

    Rows with equal outcome for both systems are alike, so resampling rows is drawing counts.
    """
    import numpy as np

    same = rows - only_new - only_old
    shares = np.array([only_new, only_old, same]) / rows
    draws = np.random.default_rng(seed).multinomial(rows, shares, size=_RESAMPLES)
    return percentile_interval((draws[:, 0] - draws[:, 1]) / rows)


def percentile_interval(values: "NDArray[np.float64]") -> Interval:
    """The middle 95 % of resampled values."""
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def minimum_detectable_difference(discordant: int, rows: int, alpha: float) -> float:
    """The difference that McNemar's test finds with power 0.8, at this share of differing rows.

    Normal approximation, (z_alpha/2 + z_power) * sqrt(discordant share / rows); at least one
    differing row is assumed.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(_POWER)
    return min(1.0, z * math.sqrt(max(discordant, 1) / rows / rows))


def compare(new: Sequence[bool], old: Sequence[bool], *, alpha: float, seed: int) -> PairedTest:
    """Test two systems on the same rows, in the same order.

    The verdict is `better` or `worse` only when the exact test's p-value is below alpha and the
    difference's interval leaves 0 out; otherwise these rows cannot tell.
    """
    rows = len(new)
    only_new = sum(n and not o for n, o in zip(new, old, strict=True))
    only_old = sum(o and not n for n, o in zip(new, old, strict=True))
    low, high = paired_interval(only_new, only_old, rows, seed)
    p_value = mcnemar_p_value(only_new, only_old)
    verdict: PairedVerdict = "cannot tell"
    if p_value < alpha and low > 0:
        verdict = "better"
    elif p_value < alpha and high < 0:
        verdict = "worse"
    return PairedTest(
        rows=rows,
        new_accuracy=sum(new) / rows,
        old_accuracy=sum(old) / rows,
        difference=(only_new - only_old) / rows,
        interval=(low, high),
        only_new_correct=only_new,
        only_old_correct=only_old,
        p_value=p_value,
        minimum_detectable_difference=minimum_detectable_difference(
            only_new + only_old, rows, alpha
        ),
        verdict=verdict,
    )
