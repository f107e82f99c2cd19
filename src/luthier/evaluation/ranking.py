"""A sweep's candidates, best first, and what their order is worth: rows, seeds, and the choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from luthier.errors import DataError
from luthier.evaluation.best_of_many import BestOfMany, RowMetric
from luthier.evaluation.entrants import Basis, Behind, Compared, Direction, Entrant
from luthier.evaluation.pairs_of_many import pooled_deviation
from luthier.evaluation.statistics import Interval


@dataclass(frozen=True)
class Ranked:
    """One candidate in its place. `score` is the mean over its seeds, `deviation` the scores'
    standard deviation. `interval`, 95 %: of rows and seeds where the score is the share of rows
    right, of seeds alone where there are no rows in common; otherwise None."""

    name: str
    score: float
    seeds: int
    deviation: float | None
    interval: Interval | None
    behind: Behind | None


@dataclass(frozen=True)
class Ranking:
    """All of them, best first.

    `rows` all have answered; 0 where the objective has no answers, or not to the same rows.
    `basis` is what tells them apart: `rows` alone where each has one seed, which tells models
    apart but not their settings, as what another seed would do is unknown; `nothing` where there
    is one seed each and no row. `metric` is what the score is of the rows; None for any other,
    whose tests are on the share of rows right. `tied`: the first and those that are not surely
    worse. `rows_needed` would tell the first from a tied second with power 0.8 if their
    difference is the true one.
    """

    rows: int
    basis: Basis
    metric: RowMetric | None
    ranked: Sequence[Ranked]
    comparisons: int
    seed_deviation: float | None
    corrected: BestOfMany | None
    tied: Sequence[str]
    rows_needed: int | None


def rank(
    entrants: Sequence[Entrant],
    *,
    direction: Direction,
    first: str | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Ranking:
    """Order candidates by their mean score, of equal ones as given, and test each against the
    first: the best, or the one named, which was chosen with more seeds than others have.

    Raises:
        DataError: there is no candidate, or a score is no finite number.
    """
    _refuse(entrants)
    compared = Compared(entrants, direction)
    order = sorted(
        range(len(entrants)),
        key=lambda one: (entrants[one].name != first, -compared.goodness(one)),
    )
    behind = [compared.behind(one, order[0], alpha) for one in order[1:]]
    ranked = [
        Ranked(
            name=entrants[place].name,
            score=compared.means[place],
            seeds=len(entrants[place].scores),
            deviation=_deviation(list(entrants[place].scores.values())),
            interval=compared.interval(place),
            behind=found,
        )
        for place, found in zip(order, [None, *behind], strict=True)
    ]
    tied = [one for one in ranked if one.behind is None or one.behind.verdict != "worse"]
    noise = pooled_deviation([list(one.scores.values()) for one in entrants])
    return Ranking(
        rows=compared.rows,
        basis=compared.basis,
        metric=compared.metric,
        ranked=ranked,
        comparisons=compared.comparisons,
        seed_deviation=noise[0] if noise else None,
        corrected=compared.corrected(seed),
        tied=[one.name for one in tied],
        rows_needed=compared.rows_needed(order, alpha) if ranked[:2] == tied[:2] else None,
    )


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _refuse(entrants: Sequence[Entrant]) -> None:
    if not entrants:
        raise DataError("There is no candidate to rank: none has a score.")
    assert len({one.name for one in entrants}) == len(entrants), "two candidates of one name"
    for one in entrants:
        assert one.scores, f"{one.name} has no score"
        assert not one.answers or one.answers.keys() == one.scores.keys(), "answers of other seeds"
        for seed, score in one.scores.items():
            if not math.isfinite(score):
                raise DataError(
                    f"{one.name}: the score of seed {seed} is {score}, which has no place in a "
                    "ranking. Leave this candidate out, as one that failed."
                )
