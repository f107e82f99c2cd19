"""A sweep's ranking: against scipy and statsmodels, and against simulations with a known truth."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t, ttest_ind
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests

from luthier.errors import DataError
from luthier.evaluation.answers import Answer, labelled
from luthier.evaluation.best_of_many import best_of_many, weighted_score
from luthier.evaluation.entrants import Compared, Entrant
from luthier.evaluation.ranking import rank
from luthier.evaluation.ranking_words import describe_ranking
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.statistics import compare, mcnemar_p_value, wilson_interval

SEEDS = (7, 8, 9)
SWEEPS = 100  # simulated
ONE_SEED = (
    "With one seed each, models are told apart, not their settings: what another seed would "
    "change is not known."
)


def answered(expected: str, predicted: str, number: int) -> Answer:
    row = AskedRow(f"row-{number}", (), expected, expected, (), ())
    return labelled("tuned", row, predicted)


BOTH = [(answered("yes", "no", number), answered("yes", "yes", number)) for number in range(1000)]


def runs(right: ArrayLike) -> dict[int, list[Answer]]:
    """Answers from [seed, row] whether they are right."""
    return {
        seed: [BOTH[number][is_right] for number, is_right in enumerate(one)]
        for seed, one in zip(SEEDS, np.atleast_2d(np.asarray(right, dtype=int)), strict=False)
    }


def entrant(name: str, right: ArrayLike) -> Entrant:
    answers = runs(right)
    return Entrant(name, accuracies(answers), answers)


def accuracies(answers: Mapping[int, Sequence[Answer]]) -> dict[int, float]:
    return {seed: sum(a.correct for a in run) / len(run) for seed, run in answers.items()}


def named(drawn: Sequence[ArrayLike]) -> list[Entrant]:
    return [entrant(f"{place}", right) for place, right in enumerate(drawn)]


def sweep(
    generator: np.random.Generator,
    truths: Sequence[float],
    *,
    rows: int = 150,
    seeds: int = 1,
    noise: float = 0.0,
) -> list[NDArray[np.bool_]]:
    """[seed, row] of each candidate: rows are as hard for all, candidates and seeds differ on
    them, and a seed moves all rows by `noise` standard deviations."""
    hard = math.sqrt(0.7) * generator.standard_normal(rows)
    found = []
    for truth in truths:
        own = math.sqrt(0.15) * generator.standard_normal(rows)
        luck = math.sqrt(0.15) * generator.standard_normal((seeds, rows))
        moved = noise * generator.standard_normal((seeds, 1))
        found.append(norm.ppf(truth) * math.hypot(1, noise) + hard + own + luck + moved > 0)
    return found


def test_one_seed_each_is_mcnemar_and_tango_as_two_models_are_compared() -> None:
    drawn = sweep(np.random.default_rng(1), [0.9, 0.7, 0.75, 0.5, 0.72])
    found = rank(named(drawn), direction="maximize")
    pairs = list(combinations(range(5), 2))
    tests = {
        pair: compare(drawn[pair[0]][0].tolist(), drawn[pair[1]][0].tolist(), alpha=0.05)
        for pair in pairs
    }
    _, adjusted, _, _ = multipletests([tests[pair].p_value for pair in pairs], method="holm")
    first = int(found.ranked[0].name)
    assert (found.basis, found.rows, found.comparisons, found.metric) == (
        "rows",
        150,
        10,
        "accuracy",
    )
    assert found.ranked[0].behind is None
    for one in found.ranked[1:]:
        assert one.behind is not None
        place = int(one.name)
        test = compare(drawn[place][0].tolist(), drawn[first][0].tolist(), alpha=0.05)
        assert one.behind.difference == pytest.approx(test.difference)
        assert one.behind.interval == test.interval
        pair = (min(place, first), max(place, first))
        assert one.behind.p_value == pytest.approx(adjusted[pairs.index(pair)])
        assert one.behind.verdict == ("worse" if one.behind.p_value < 0.05 else "cannot tell")
        assert one.interval == wilson_interval(round(150 * one.score), 150)
    assert {one.behind.verdict for one in found.ranked[1:] if one.behind} == {"worse"}


def test_no_verdict_that_the_adjusted_p_value_does_not_bear_out() -> None:
    best, seven_fewer = [True] * 40, [False] * 7 + [True] * 33
    two = rank(named([best, seven_fewer]), direction="maximize")
    many = rank(named([best, seven_fewer, *[best] * 4]), direction="maximize")
    assert two.tied == ["0"]
    last = many.ranked[-1]
    assert last.name == "1"
    assert last.behind is not None
    assert last.behind.interval is not None
    assert last.behind.interval[1] < 0
    assert last.behind.verdict == "cannot tell"
    assert len(many.tied) == 6


def test_several_seeds_count_rows_and_seeds() -> None:
    generator = np.random.default_rng(2)
    one, other = sweep(generator, [0.8, 0.6], seeds=3, noise=0.1)
    found = rank(named([one, other]), direction="maximize")
    differences = other.mean(axis=0) - one.mean(axis=0)
    from_rows = ((differences**2).sum() + 2) / 150**2
    seed_variance = (one.mean(axis=1).var(ddof=1) + other.mean(axis=1).var(ddof=1)) / 2
    from_seeds = seed_variance * (1 / 3 + 1 / 3)
    variance = from_rows + from_seeds
    freedom = variance**2 / (from_rows**2 / 149 + from_seeds**2 / 4)
    half = t.ppf(0.975, freedom) * math.sqrt(variance)
    behind = found.ranked[1].behind
    assert behind is not None
    assert found.basis == "rows and seeds"
    assert found.seed_deviation == pytest.approx(math.sqrt(seed_variance))
    assert behind.difference == pytest.approx(differences.mean())
    assert behind.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    statistic = abs(differences.mean()) / math.sqrt(variance)
    assert behind.p_value == pytest.approx(2 * t.sf(statistic, freedom))


def test_what_seeds_do_counts_for_a_candidate_with_one_seed_too() -> None:
    drawn = sweep(np.random.default_rng(3), [0.8, 0.7, 0.7], seeds=3, noise=0.3)
    alone = rank(named([drawn[0][0], drawn[1][0]]), direction="maximize")
    known = rank(named([drawn[0][0], drawn[1][0], drawn[2]]), direction="maximize")

    def width(ends: tuple[float, float] | None) -> float:
        assert ends is not None
        return ends[1] - ends[0]

    def of(ranking_name: str, name: str) -> float:
        ranking = {"alone": alone, "known": known}[ranking_name]
        return next(width(one.interval) for one in ranking.ranked if one.name == name)

    assert of("known", "0") > 1.2 * of("alone", "0")
    assert of("known", "2") < of("known", "1")
    assert alone.seed_deviation is None
    assert known.seed_deviation == pytest.approx(drawn[2].mean(axis=1).std(ddof=1))


def test_losses_have_no_rows_and_less_is_better() -> None:
    losses = {"high": [0.61, 0.63, 0.60], "low": [0.41, 0.40, 0.44]}
    entrants = [
        Entrant(name, dict(zip(SEEDS, values, strict=True))) for name, values in losses.items()
    ]
    found = rank(entrants, direction="minimize")
    test = ttest_ind(losses["high"], losses["low"])
    interval = test.confidence_interval()
    assert [one.name for one in found.ranked] == ["low", "high"]
    assert (found.rows, found.basis, found.corrected, found.metric) == (0, "seeds", None, None)
    behind = found.ranked[1].behind
    assert behind is not None
    assert behind.difference > 0
    assert behind.interval == pytest.approx((interval.low, interval.high))
    assert behind.p_value == pytest.approx(test.pvalue)
    assert (behind.verdict, found.tied) == ("worse", ["low"])
    half = t.ppf(0.975, 4) * (found.seed_deviation or 0) / math.sqrt(3)
    assert found.ranked[0].interval == pytest.approx(
        (found.ranked[0].score - half, found.ranked[0].score + half)
    )


def test_one_loss_each_tells_nothing() -> None:
    found = rank([Entrant("a", {7: 0.4}), Entrant("b", {7: 0.9})], direction="minimize")
    behind = found.ranked[1].behind
    assert behind is not None
    assert (behind.interval, behind.p_value, behind.verdict) == (None, None, "cannot tell")
    assert (found.basis, found.comparisons, found.tied) == ("nothing", 0, ["a", "b"])
    assert describe_ranking(found, {"a": "trial 1", "b": "trial 2"}) == [
        "Of 2 candidates trial 1 comes first with 0.4; with one seed each and no rows that all "
        "have answered, nothing tells how surely.",
    ]


@pytest.mark.parametrize("same", [0.5, 0.25])
def test_seeds_that_change_nothing(same: float) -> None:
    found = rank(
        [Entrant("a", {7: 0.5, 8: 0.5}), Entrant("b", {7: same, 8: same})], direction="maximize"
    )
    behind = found.ranked[1].behind
    assert behind is not None
    assert behind.p_value == (1 if same == 0.5 else 0)
    assert behind.verdict == ("cannot tell" if same == 0.5 else "worse")


def test_answers_that_are_all_the_same_tell_nothing_apart() -> None:
    drawn = sweep(np.random.default_rng(4), [0.7], seeds=3)[0]
    found = rank(named([drawn, drawn]), direction="maximize")
    assert found.tied == ["0", "1"]
    assert found.ranked[1].behind is not None
    assert found.ranked[1].behind.p_value == pytest.approx(1)


def test_few_rows_are_not_sure_because_all_seeds_agree() -> None:
    right, wrong = np.ones((3, 5)), np.zeros((3, 5))
    found = rank(named([right, wrong, right]), direction="maximize")
    assert found.tied == ["0", "2", "1"]
    assert found.corrected is not None
    assert found.corrected.interval == (wilson_interval(5, 5)[0], 1)


@pytest.mark.parametrize(("lost", "gained"), [(6, 0), (10, 2), (20, 10), (40, 20)])
def test_where_seeds_change_nothing_it_is_near_the_exact_test(lost: int, gained: int) -> None:
    first, second = np.ones((2, 150)), np.ones((2, 150))
    second[:, :lost] = first[:, lost : lost + gained] = 0
    behind = rank(named([first, second]), direction="maximize").ranked[1].behind
    assert behind is not None
    assert behind.p_value == pytest.approx(mcnemar_p_value(gained, lost), rel=0.25)


def test_a_single_candidate() -> None:
    found = rank(named([[True, False, True, True]]), direction="maximize")
    assert (found.corrected, found.tied, found.comparisons) == (None, ["0"], 0)
    assert found.ranked[0].interval == wilson_interval(3, 4)
    assert describe_ranking(found, {"0": "trial 5"}) == [
        "The only candidate is trial 5, with 75.0 %."
    ]


def test_equal_scores_keep_the_order_given() -> None:
    right = [[True, False, True], [False, True, True], [True, True, False]]
    found = rank(named(right), direction="maximize")
    assert [one.name for one in found.ranked] == ["0", "1", "2"]
    assert found.rows_needed is None


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    with pytest.raises(DataError, match=r"bad: the score of seed 8 is .* Leave this candidate"):
        rank([Entrant("bad", {7: 0.5, 8: score})], direction="maximize")
    with pytest.raises(DataError, match="no candidate to rank"):
        rank([], direction="maximize")


def test_rows_that_differ_are_not_compared() -> None:
    first, second = ([BOTH[number][1] for number in numbers] for numbers in ((0, 1), (1, 2)))
    other = [answered("no", "yes", 0), BOTH[1][1]]
    for answers in (second, other, first[:1]):
        entrants = [Entrant("a", {7: 1.0}, {7: first}), Entrant("b", {7: 1.0}, {7: answers})]
        found = rank(entrants, direction="maximize")
        assert (found.rows, found.basis, found.corrected) == (0, "nothing", None)
    turned = Entrant("b", {7: 1.0}, {7: first[::-1]})
    assert rank([entrants[0], turned], direction="maximize").rows == 2


def macro(expected: NDArray[np.int64], predicted: NDArray[np.int64]) -> Entrant:
    answers = [
        answered(f"{e}", f"{p}", number)
        for number, (e, p) in enumerate(zip(expected, predicted, strict=True))
    ]
    present = sorted(set(expected))
    score = f1_score(expected, predicted, average="macro", labels=present, zero_division=0)
    return Entrant(f"{score}", {7: float(score)}, {7: answers})


def test_macro_f1_is_corrected_as_such_and_tested_on_rows_right() -> None:
    generator = np.random.default_rng(5)
    expected = generator.choice(5, 200, p=[0.4, 0.3, 0.2, 0.08, 0.02])
    entrants = [
        macro(expected, np.where(generator.random(200) < 0.7, expected, generator.choice(7, 200)))
        for _ in range(10)
    ]
    found = rank(entrants, direction="maximize")
    assert found.metric == "macro_f1"
    assert found.corrected is not None
    assert found.corrected.metric == "macro_f1"
    assert found.corrected.best == pytest.approx(found.ranked[0].score)
    assert found.corrected.interval[0] < found.corrected.expected < found.ranked[0].score - 0.01
    assert found.ranked[0].interval is None
    lines = describe_ranking(found, {one.name: one.name for one in entrants})
    assert lines[0].startswith("By rows right, on 200 rows, ")


def test_rows_that_count_twice_are_rows_twice() -> None:
    generator = np.random.default_rng(6)
    expected, predicted = generator.choice(4, (2, 60))
    answers = macro(expected, predicted).answers[7]
    weights = generator.multinomial(60, np.full(60, 1 / 60), size=5).T
    found = weighted_score("macro_f1", answers, weights.astype(np.float32))
    right = weighted_score("accuracy", answers, weights.astype(np.float32))
    for draw in range(5):
        rows = np.repeat(np.arange(60), weights[:, draw])
        twice = macro(expected[rows], predicted[rows])
        assert found[draw] == pytest.approx(twice.scores[7])
        assert right[draw] == pytest.approx((expected == predicted)[rows].mean())


def test_another_score_is_tested_and_corrected_on_rows_right() -> None:
    drawn = sweep(np.random.default_rng(7), [0.8, 0.7, 0.3])
    entrants = [
        Entrant(f"{place}", {7: score}, runs(right))
        for place, (right, score) in enumerate(zip(drawn, [0.11, 0.12, 0.10], strict=True))
    ]
    found = rank(entrants, direction="maximize")
    assert [one.name for one in found.ranked] == ["1", "0", "2"]
    assert found.metric is None
    assert found.ranked[0].interval is None
    assert found.corrected is not None
    assert found.corrected.metric == "accuracy"
    assert found.corrected.best == max(right.mean() for right in drawn)
    assert (
        "of the rows right is the best of 3"
        in describe_ranking(found, {"0": "a", "1": "b", "2": "c"})[-1]
    )


def test_the_order_is_said_with_what_it_is_worth() -> None:
    right = np.zeros((3, 150))
    right[0, :120] = right[1, 8:126] = right[2, :60] = 1
    titles = {"0": "trial 4", "1": "trial 1", "2": "trial 6"}
    lines = describe_ranking(rank(named(right), direction="maximize"), titles)
    assert lines[:2] == [
        "On 150 rows trial 4 cannot be told from trial 1 (p 0.79) and is better than trial 6 "
        "(p 0.0001 at most); p-values allow for 3 comparisons.",
        ONE_SEED,
    ]
    assert lines[2].startswith("80.0 % is the best of 3; allowing for that choice 78.8 % [")
    assert lines[2].endswith("] is to be expected.")
    assert lines[3].startswith("About ")
    assert lines[3].endswith(
        "rows would tell the first two apart, if they differ as much as here."
    )
    surely = rank(named(right[[0, 2, 2]]), direction="maximize")
    assert describe_ranking(surely, titles)[0] == (
        "On 150 rows trial 4 is better than all 2 others (p 0.0001 at most); p-values allow for "
        "3 comparisons."
    )
    assert surely.rows_needed is None
    right[1] = np.roll(right[0], 30)
    right[1, 149] = 0
    assert describe_ranking(rank(named(right), direction="maximize"), titles)[-1] == (
        "More than 100 times these rows would be needed to tell the first two apart, if they "
        "differ as little as here."
    )


def test_seeds_are_said_and_many_names_are_cut() -> None:
    drawn = sweep(np.random.default_rng(8), [0.7] * 8, seeds=2, noise=0.1)
    found = rank(named(drawn), direction="maximize")
    lines = describe_ranking(found, {f"{n}": f"trial {n}" for n in range(8)})
    assert lines[0].startswith("On 150 rows and over seeds trial ")
    assert " and 4 more (p " in lines[0]
    assert lines[0].endswith("); p-values allow for 28 comparisons.")
    assert lines[1] == (
        f"Seeds alone move the score by {100 * (found.seed_deviation or 0):.1f} points "
        "(standard deviation)."
    )


def test_the_same_seed_gives_the_same_correction() -> None:
    drawn = [runs(one) for one in sweep(np.random.default_rng(9), [0.7] * 4, seeds=3)]
    assert best_of_many("accuracy", drawn, seed=1) == best_of_many("accuracy", drawn, seed=1)
    assert best_of_many("accuracy", drawn, seed=1) != best_of_many("accuracy", drawn, seed=2)
    assert best_of_many("accuracy", [runs([True]), runs([False])], seed=1) is None


@pytest.mark.parametrize(
    ("candidates", "seeds", "noise", "naive", "corrected"),
    [(20, 1, 0.0, 0.04, 0.01), (8, 3, 0.1, 0.02, 0.01)],
)
def test_the_best_of_equal_candidates_is_corrected_to_their_true_accuracy(
    candidates: int, seeds: int, noise: float, naive: float, corrected: float
) -> None:
    generator = np.random.default_rng(10)
    found = []
    for _ in range(SWEEPS):
        drawn = sweep(generator, [0.7] * candidates, seeds=seeds, noise=noise)
        found.append(best_of_many("accuracy", [runs(one) for one in drawn], seed=0, draws=100))
    assert np.mean([one.best for one in found if one]) - 0.7 > naive
    assert abs(np.mean([one.expected for one in found if one]) - 0.7) < corrected
    held = np.mean([one.interval[0] <= 0.7 <= one.interval[1] for one in found if one])
    assert held >= 0.95


def test_a_choice_that_was_clear_is_hardly_corrected() -> None:
    drawn = sweep(np.random.default_rng(11), [0.9, 0.6, 0.6, 0.6], rows=400)
    found = best_of_many("accuracy", [runs(one) for one in drawn], seed=0)
    assert found is not None
    assert found.best == drawn[0].mean()
    assert found.expected == pytest.approx(found.best, abs=0.003)


def worse_found(
    draw: Callable[[], Sequence[NDArray[np.bool_]]], is_wrong: Callable[[set[str]], bool]
) -> float:
    """The share of simulated sweeps in which those called worse are such."""
    wrong = 0
    for _ in range(SWEEPS):
        compared = Compared(named(draw()), "maximize")
        order = sorted(range(len(compared.means)), key=lambda one: -compared.goodness(one))
        wrong += is_wrong(
            {
                f"{one}"
                for one in order[1:]
                if compared.behind(one, order[0], 0.05).verdict == "worse"
            }
        )
    return wrong / SWEEPS


@pytest.mark.parametrize(
    ("candidates", "finalists", "noise"), [(8, 0, 0.0), (20, 0, 0.0), (5, 5, 0.2), (8, 3, 0.1)]
)
def test_of_equal_candidates_hardly_ever_one_is_called_worse(
    candidates: int, finalists: int, noise: float
) -> None:
    generator = np.random.default_rng(12)

    def draw() -> list[NDArray[np.bool_]]:
        """The best with their first seed are trained with two more."""
        drawn = sweep(generator, [0.7] * candidates, seeds=3, noise=noise)
        order = sorted(range(candidates), key=lambda one: -drawn[one][0].mean())
        chosen = order[:finalists]
        return [one if place in chosen else one[:1] for place, one in enumerate(drawn)]

    assert worse_found(draw, bool) <= 0.05


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_truly_better_candidate_is_found(seeds: int) -> None:
    generator = np.random.default_rng(13)
    truths = [0.6, 0.6, 0.85, 0.6]
    share = worse_found(
        lambda: sweep(generator, truths, seeds=seeds, noise=0.05),
        lambda worse: worse == {"0", "1", "3"},
    )
    assert share > 0.9


def test_the_interval_of_a_share_over_seeds_holds_the_truth() -> None:
    generator = np.random.default_rng(14)
    held = 0
    for _ in range(SWEEPS):
        drawn = sweep(generator, [0.9, 0.7, 0.7], seeds=3, noise=0.2)
        ends = Compared(named(drawn), "maximize").interval(0)
        assert ends is not None
        held += ends[0] <= 0.9 <= ends[1]
    assert 0.93 <= held / SWEEPS <= 0.99


def test_all_rows_right_is_as_unsure_as_rows_and_seeds_are() -> None:
    perfect, other = np.ones((3, 50)), sweep(np.random.default_rng(15), [0.7], rows=50, seeds=3)[0]
    low, high = Compared(named([perfect, other]), "maximize").interval(0) or (0.0, 0.0)
    assert 0.8 < low < wilson_interval(50, 50)[0] + 0.01
    assert high == 1
