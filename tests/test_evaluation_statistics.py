"""Intervals and tests against scipy's and statsmodels'; too few rows cannot tell (F35)."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial, norm, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from luthier.evaluation.power import mcnemar_power, minimum_detectable_difference, required_rows
from luthier.evaluation.statistics import (
    compare,
    compare_means,
    holm,
    mcnemar_p_value,
    over_seeds,
    paired_interval,
    ratio_interval,
    wilson_interval,
)

SHARES = [
    *((0, 1), (1, 1), (0, 10), (7, 10), (10, 10), (1, 40), (20, 40), (38, 40), (40, 40)),
    *((50, 100), (83, 100), (99, 100), (190, 612), (306, 612), (508, 612), (581, 612)),
    *((612, 612), (1, 5000), (4321, 5000), (99_950, 100_000)),
]
# rows that only the new system has right, only the old one, all rows
TABLES = [
    *((1, 0, 40), (0, 1, 40), (5, 0, 40), (6, 0, 40), (5, 2, 40), (10, 2, 40), (9, 9, 40)),
    *((20, 20, 40), (40, 0, 40), (3, 3, 100), (0, 6, 100), (12, 4, 100), (40, 21, 100)),
    *((7, 30, 100), (2, 1, 612), (30, 18, 612), (18, 42, 612), (80, 30, 612), (250, 200, 612)),
    *((100, 140, 5000), (400, 300, 5000)),
]


@pytest.mark.parametrize(("successes", "total"), SHARES)
def test_wilson_interval_is_statsmodels(successes: int, total: int) -> None:
    expected = proportion_confint(successes, total, method="wilson")
    assert wilson_interval(successes, total) == pytest.approx(expected, abs=1e-12)


def test_nothing_measured_is_no_knowledge() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("only_new", "only_old", "rows"), TABLES)
def test_mcnemar_is_statsmodels_and_the_exact_binomial_test(
    only_new: int, only_old: int, rows: int
) -> None:
    both = (rows - only_new - only_old) // 2
    table = [[both, only_new], [only_old, rows - only_new - only_old - both]]
    found = mcnemar_p_value(only_new, only_old)
    assert found == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert found == pytest.approx(binomtest(only_old, only_new + only_old).pvalue)


def test_mcnemar_without_a_difference() -> None:
    assert mcnemar_p_value(0, 0) == 1.0


def contradiction(only_new: int, only_old: int, rows: int, difference: float) -> float:
    """Tango's z of a difference: its nuisance share found by search, not by his formula."""
    from scipy.optimize import minimize_scalar

    def loss(share: float) -> float:
        cells = share + difference, share, 1 - 2 * share - difference
        counts = only_new, only_old, rows - only_new - only_old
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, cells, strict=True))

    least, most = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(loss, bounds=(least, most), options={"xatol": 1e-12}).x
    variance = rows * (2 * share + difference - difference**2)
    return float((only_new - only_old - rows * difference) / math.sqrt(variance))


@pytest.mark.parametrize(("only_new", "only_old", "rows"), TABLES)
def test_both_ends_of_the_paired_interval_are_just_not_contradicted(
    only_new: int, only_old: int, rows: int
) -> None:
    low, high = paired_interval(only_new, only_old, rows)
    assert -1 <= low < high <= 1
    assert low <= (only_new - only_old) / rows <= high
    z = norm.ppf(0.975)
    assert contradiction(only_new, only_old, rows, low) == pytest.approx(z, abs=2e-3)
    if high < 1:
        assert contradiction(only_new, only_old, rows, high) == pytest.approx(-z, abs=2e-3)
    assert paired_interval(only_old, only_new, rows) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("only_new", "only_old", "rows"), TABLES)
def test_where_the_exact_test_finds_a_difference_the_interval_does(
    only_new: int, only_old: int, rows: int
) -> None:
    low, high = paired_interval(only_new, only_old, rows)
    chi2 = (only_new - only_old) ** 2 / (only_new + only_old)
    assert (low > 0 or high < 0) == (chi2 > norm.ppf(0.975) ** 2)
    if mcnemar_p_value(only_new, only_old) < 0.05:
        assert low > 0 or high < 0


def test_paired_interval_is_about_the_normal_one() -> None:
    low, high = paired_interval(80, 30, 600)
    share = (80 - 30) / 600
    deviation = ((80 + 30) / 600 - share**2) ** 0.5 / 600**0.5
    assert low == pytest.approx(norm.ppf(0.025, share, deviation), abs=0.002)
    assert high == pytest.approx(norm.ppf(0.975, share, deviation), abs=0.002)


@pytest.mark.parametrize(
    ("rows", "differing", "difference"), [(12, 0.9, 0.8), (25, 0.4, 0.3), (40, 0.2, 0.2)]
)
def test_power_is_that_of_every_table_there_can_be(
    rows: int, differing: float, difference: float
) -> None:
    shares = [(differing + difference) / 2, (differing - difference) / 2, 1 - differing]
    found = sum(
        multinomial.pmf([new, old, rows - new - old], rows, shares)
        for new in range(rows + 1)
        for old in range(rows + 1 - new)
        if new > old and mcnemar_p_value(new, old) < 0.05
    )
    assert mcnemar_power(rows, differing, difference, 0.05) == pytest.approx(found, abs=1e-7)


@pytest.mark.parametrize(
    ("only_new", "only_old", "rows"), [one for one in TABLES if one[0] != one[1]]
)
def test_required_rows_have_the_power_and_fewer_do_not(
    only_new: int, only_old: int, rows: int
) -> None:
    needed = required_rows(only_new, only_old, rows, 0.05)
    assert needed is not None
    differing, difference = (only_new + only_old) / rows, abs(only_new - only_old) / rows

    def power(tests: int) -> float:
        counts = np.arange(1, tests + 1)
        shares = binom.pmf(counts, tests, differing)
        lost, found = (differing - difference) / (2 * differing), 0.0
        for count, share in zip(counts[shares > 1e-9], shares[shares > 1e-9], strict=True):
            ks = np.arange(count // 2 + 1)
            significant = 2 * binom.cdf(ks, count, 0.5) < 0.05
            found += share * binom.pmf(ks[significant], count, lost).sum()
        return float(found)

    if needed * differing < 120:  # so that the long way is short enough
        assert power(needed) >= 0.8 > power(needed - 1)
    else:
        effect = difference / math.sqrt(differing)
        normal = NormalIndPower().solve_power(effect, None, 0.05, 0.8, ratio=0)
        assert needed == pytest.approx(normal, rel=0.1)


def test_rows_for_no_difference_are_not_known() -> None:
    assert required_rows(3, 3, 40, 0.05) is None
    assert required_rows(0, 0, 40, 0.05) is None
    assert required_rows(1, 0, 40, 0.05) == 315


def test_a_tiny_difference_needs_very_many_rows_and_no_time() -> None:
    needed = required_rows(501, 500, 100_000, 0.05)
    assert needed is not None
    assert needed == pytest.approx(7.849 * 0.01001 / 1e-5**2, rel=0.01)


@pytest.mark.parametrize(("discordant", "rows"), [(0, 40), (4, 40), (16, 100), (60, 612)])
def test_the_minimum_detectable_difference_has_power_of_four_in_five(
    discordant: int, rows: int
) -> None:
    least = minimum_detectable_difference(discordant, rows, 0.05)
    for difference, finds in ((least, True), (least - 0.002, False)):
        share = max(discordant / rows, difference)
        assert (mcnemar_power(rows, share, difference, 0.05) >= 0.8) == finds


def test_minimum_detectable_difference_shrinks_with_rows() -> None:
    few, many = (minimum_detectable_difference(rows // 5, rows, 0.05) for rows in (50, 5000))
    assert few == pytest.approx(2.80 * (0.2 / 50) ** 0.5, abs=0.02)
    assert many == pytest.approx(2.80 * (0.2 / 5000) ** 0.5, abs=0.001)
    assert minimum_detectable_difference(2, 4, 0.05) == 1


@pytest.mark.parametrize(
    "p_values",
    [
        [0.01, 0.04, 0.03, 0.005],
        [0.5],
        [0.04, 0.04, 0.04],
        [1.0, 0.9, 0.0],
        [0.2, 0.001, 0.6, 0.03],
    ],
)
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(list(expected))


def test_paired_means_are_scipys() -> None:
    new, old = [0.3, 0.9, 0.4, 0.8], [0.5, 0.9, 0.7, 0.9]
    found, expected = compare_means(new, old), ttest_rel(new, old)
    assert found is not None
    assert found.difference == pytest.approx(-0.15)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_paired_means_without_spread_or_rows() -> None:
    same = compare_means([0.5, 0.5], [0.5, 0.5])
    assert same is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert compare_means([0.5], [0.4]) is None


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def test_over_seeds_is_the_t_interval() -> None:
    values = [0.81, 0.84, 0.79, 0.83, 0.8]
    found = over_seeds(values)
    assert (found.seeds, found.mean) == (5, pytest.approx(0.814))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.interval == pytest.approx(DescrStatsW(values).tconfint_mean())
    assert over_seeds([0.8]).interval is None


def test_a_ratio_with_equal_weights_is_a_mean() -> None:
    totals = [4.0, 7.0, 1.0, 3.0, 9.0]
    expected = DescrStatsW(np.array(totals) / 2).tconfint_mean()
    assert ratio_interval(totals, [2.0] * 5) == pytest.approx(expected)
    assert ratio_interval([1.0], [2.0]) is None


def outcomes(
    both: int, only_new: int, only_old: int, neither: int
) -> tuple[list[bool], list[bool]]:
    new = [True] * (both + only_new) + [False] * (only_old + neither)
    old = [True] * both + [False] * only_new + [True] * only_old + [False] * neither
    return new, old


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((300, 200, 10, 90), "better"),
        ((300, 10, 200, 90), "worse"),
        ((300, 60, 55, 185), "cannot tell"),
        ((10, 4, 0, 6), "cannot tell"),  # 20 points better, on 20 rows
        ((50, 0, 0, 50), "cannot tell"),
    ],
)
def test_verdict(counts: tuple[int, int, int, int], verdict: str) -> None:
    new, old = outcomes(*counts)
    test = compare(new, old, alpha=0.05)
    assert test.verdict == verdict
    assert (test.only_new_correct, test.only_old_correct) == counts[1:3]
    assert test.difference == pytest.approx(test.new_accuracy - test.old_accuracy)
    assert test.interval[0] <= test.difference <= test.interval[1]
    assert (test.rows_needed is None) == (counts[1] == counts[2])
    if test.rows_needed is not None:
        assert (test.rows_needed > test.rows) == (verdict == "cannot tell")
    assert test == compare(new, old, alpha=0.05)


def test_a_smaller_alpha_asks_for_more() -> None:
    new, old = outcomes(300, 30, 12, 58)
    assert compare(new, old, alpha=0.05).verdict == "better"
    assert compare(new, old, alpha=0.001).verdict == "cannot tell"
