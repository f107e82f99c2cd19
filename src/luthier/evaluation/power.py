"""How many rows a difference needs to be seen, and what difference these rows can show."""

import math
from statistics import NormalDist

_POWER = 0.8
_FORGOTTEN = 1e-9  # share of the counts of differing rows that are left out at either end
_NORMAL_FROM = 20_000  # differing rows; from here on the normal approximation is exact enough
_PRECISION = 1e-4  # of a difference


def mcnemar_power(rows: int, differing: float, difference: float, alpha: float) -> float:
    """How often the exact two-sided McNemar test finds a true difference, with the right sign.

    Over all counts of differing rows that these rows can have, each as binomial as it is.

    Args:
        differing: share of rows that one system has right and the other wrong.
        difference: share of rows by which the better system is ahead, at most `differing`.
    """
    import numpy as np
    from scipy.stats import binom

    ends = binom.ppf([_FORGOTTEN, 1 - _FORGOTTEN], rows, differing)
    counts = np.arange(max(1, ends[0]), ends[1] + 1)
    most_lost = binom.ppf(alpha / 2, counts, 0.5)  # with which the test still finds a difference
    most_lost -= 2 * binom.cdf(most_lost, counts, 0.5) >= alpha
    found = binom.cdf(most_lost, counts, (differing - difference) / (2 * differing))
    return float((binom.pmf(counts, rows, differing) * found).sum())


def minimum_detectable_difference(discordant: int, rows: int, alpha: float) -> float:
    """The difference that the exact McNemar test finds with power 0.8 on so many rows.

    At this share of differing rows, at least one of them, or at a larger one where the difference
    alone asks for it. 1 where not even that would be found.
    """
    share = max(discordant, 1) / rows
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if mcnemar_power(rows, max(share, middle), middle, alpha) >= _POWER:
            high = middle
        else:
            low = middle
    return high


def required_rows(only_new: int, only_old: int, rows: int, alpha: float) -> int | None:
    """How many rows show the observed difference with power 0.8, if it is the true one and the
    share of differing rows stays; None where no difference was observed.

    The difference is as unsure as its interval is wide, and so is this number. Exact power; where
    tens of thousands of rows differ, the normal approximation (Connor 1987, Biometrics 43).
    """
    if only_new == only_old:
        return None
    differing, difference = (only_new + only_old) / rows, abs(only_new - only_old) / rows
    normal = NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(_POWER)
    spread = z_alpha * math.sqrt(differing) + z_power * math.sqrt(differing - difference**2)
    high = math.ceil((spread / difference) ** 2)
    if high * differing > _NORMAL_FROM:
        return high
    low = 0
    while mcnemar_power(high, differing, difference, alpha) < _POWER:
        low, high = high, high + max(high // 4, 4)
    while high - low > 1:
        middle = (low + high) // 2
        if mcnemar_power(middle, differing, difference, alpha) >= _POWER:
            high = middle
        else:
            low = middle
    return high


def two_digits(rows: int) -> int:
    """A number of rows as it is said: up, to two digits; more would be false."""
    unit: int = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit
