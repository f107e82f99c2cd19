"""Intervals and the paired test against scipy's; too few rows cannot tell (F35)."""

import pytest
from scipy.stats import binomtest, norm

from luthier.evaluation.statistics import (
    compare,
    mcnemar_p_value,
    minimum_detectable_difference,
    paired_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (7, 10), (10, 10), (190, 612)])
def test_wilson_interval_is_scipys(successes: int, total: int) -> None:
    expected = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, total) == pytest.approx((expected.low, expected.high))


def test_nothing_measured_is_no_knowledge() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("only_new", "only_old"), [(10, 2), (3, 3), (0, 6), (40, 21)])
def test_mcnemar_is_the_exact_binomial_test(only_new: int, only_old: int) -> None:
    smaller = min(only_new, only_old)
    total = only_new + only_old
    two_sided = min(1.0, 2 * binomtest(smaller, total, alternative="less").pvalue)
    assert mcnemar_p_value(only_new, only_old) == pytest.approx(two_sided)


def test_mcnemar_without_a_difference() -> None:
    assert mcnemar_p_value(0, 0) == 1.0


def test_paired_interval_is_about_the_normal_one() -> None:
    low, high = paired_interval(80, 30, 600, seed=1)
    share = (80 - 30) / 600
    deviation = ((80 + 30) / 600 - share**2) ** 0.5 / 600**0.5
    assert low == pytest.approx(norm.ppf(0.025, share, deviation), abs=0.004)
    assert high == pytest.approx(norm.ppf(0.975, share, deviation), abs=0.004)
    assert paired_interval(80, 30, 600, seed=1) == (low, high)


def test_minimum_detectable_difference_shrinks_with_rows() -> None:
    few, many = (minimum_detectable_difference(rows // 5, rows, 0.05) for rows in (50, 5000))
    assert few == pytest.approx(2.80 * (0.2 / 50) ** 0.5, abs=0.001)
    assert many == pytest.approx(few / 10, rel=1e-6)
    assert 0 < minimum_detectable_difference(0, 100, 0.05) < 0.05


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
    test = compare(new, old, alpha=0.05, seed=7)
    assert test.verdict == verdict
    assert (test.only_new_correct, test.only_old_correct) == counts[1:3]
    assert test.difference == pytest.approx(test.new_accuracy - test.old_accuracy)
    assert test.interval[0] <= test.difference <= test.interval[1]
    assert test == compare(new, old, alpha=0.05, seed=7)


def test_a_smaller_alpha_asks_for_more() -> None:
    new, old = outcomes(300, 30, 12, 58)
    assert compare(new, old, alpha=0.05, seed=7).verdict == "better"
    assert compare(new, old, alpha=0.001, seed=7).verdict == "cannot tell"
