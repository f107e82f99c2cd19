"""Candidates on common rows and over seeds: what tells them apart, and each against another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Literal

from luthier.evaluation.answers import Answer
from luthier.evaluation.best_of_many import (
    BestOfMany,
    BySeed,
    RowMetric,
    best_of_many,
    weighted_score,
)
from luthier.evaluation.pairs_of_many import (
    Pairs,
    by_rows,
    by_rows_and_seeds,
    by_seeds,
    pooled_deviation,
)
from luthier.evaluation.power import required_rows
from luthier.evaluation.statistics import CONFIDENCE, Interval, PairedVerdict, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Direction = Literal["maximize", "minimize"]
Basis = Literal["rows", "rows and seeds", "seeds", "nothing"]
_DECIMALS = 12  # scores that are equal in truth are equal in floating point
_ROW_METRICS: tuple[RowMetric, ...] = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Entrant:
    """One candidate: the objective's score by training seed, and its answers to the validation
    rows by training seed, empty where the objective has none (a loss)."""

    name: str
    scores: Mapping[int, float]
    answers: BySeed = field(default_factory=dict)


@dataclass(frozen=True)
class Behind:
    """One candidate against the first.

    `difference`: its share of rows right minus the first's, or its score minus the first's where
    rows do not tell. The p-value allows for all pairs of candidates, the 95 % interval is of this
    pair alone; None where nothing tells.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    verdict: PairedVerdict


@dataclass(frozen=True)
class Compared:
    """All candidates, in the order given, which their places count."""

    entrants: Sequence[Entrant]
    direction: Direction

    @cached_property
    def means(self) -> list[float]:
        """Mean score over the seeds of each."""
        return [fmean(one.scores.values()) for one in self.entrants]

    def goodness(self, place: int) -> float:
        """The mean score as a number of which more is better."""
        sign = 1 if self.direction == "maximize" else -1
        return sign * round(self.means[place], _DECIMALS)

    @cached_property
    def aligned(self) -> list[dict[int, list[Answer]]]:
        """Their answers in one order of rows; empty where the rows are not the same."""
        return _aligned([one.answers for one in self.entrants])

    @cached_property
    def rows(self) -> int:
        """Rows that all answered, 0 where not all answered the same."""
        return len(next(iter(self.aligned[0].values()))) if self.aligned else 0

    @cached_property
    def right(self) -> "list[NDArray[np.float64]]":
        """Of each candidate [seed, row]."""
        import numpy as np

        return [
            np.array([[answer.correct for answer in run] for run in one.values()], dtype=float)
            for one in self.aligned
        ]

    @cached_property
    def shares(self) -> "NDArray[np.float64]":
        """[candidate, row] the share of its seeds that have the row right."""
        import numpy as np

        return np.array([one.mean(axis=0) for one in self.right])

    @cached_property
    def tested(self) -> list[list[float]]:
        """What is tested, by candidate and seed: shares of rows right, or scores."""
        if self.aligned:
            return [one.mean(axis=1).tolist() for one in self.right]
        return [list(one.scores.values()) for one in self.entrants]

    @cached_property
    def noise(self) -> tuple[float, int] | None:
        """What seeds do to what is tested, and its degrees of freedom."""
        return pooled_deviation(self.tested)

    @cached_property
    def basis(self) -> Basis:
        """What tells them apart."""
        if self.noise is None:
            return "rows" if self.aligned else "nothing"
        return "rows and seeds" if self.aligned else "seeds"

    @cached_property
    def metric(self) -> RowMetric | None:
        """The metric of rows whose values all scores are."""
        return next((name for name in _ROW_METRICS if self.aligned and self._is(name)), None)

    def _is(self, name: RowMetric) -> bool:
        import numpy as np

        once = np.ones((self.rows, 1), dtype=np.float32)
        return all(
            math.isclose(weighted_score(name, runs[key], once)[0], score, abs_tol=1e-9)
            for one, runs in zip(self.entrants, self.aligned, strict=True)
            for key, score in one.scores.items()
        )

    @property
    def comparisons(self) -> int:
        """Pairs that are tested."""
        return 0 if self.basis == "nothing" else math.comb(len(self.entrants), 2)

    @cached_property
    def pairs(self) -> Pairs | None:
        """The tests of all pairs; None where nothing tells."""
        import numpy as np

        seeds = [len(one.scores) for one in self.entrants]
        if self.noise is None:
            return by_rows(self.shares > 0) if self.aligned else None
        if self.aligned:
            return by_rows_and_seeds(self.shares, seeds, self.noise)
        return by_seeds(np.array([fmean(one) for one in self.tested]), seeds, self.noise)

    def behind(self, place: int, first: int, alpha: float) -> Behind:
        """One against the first, `better` or `worse` only where p-value and interval say so."""
        difference = fmean(self.tested[place]) - fmean(self.tested[first])
        if self.pairs is None:
            return Behind(difference, None, None, "cannot tell")
        low, high = self.pairs.interval(place, first, difference, self.rows)
        p_value = float(self.pairs.p_values[place, first])
        is_more_better = bool(self.aligned) or self.direction == "maximize"
        verdict: PairedVerdict = "cannot tell"
        if p_value < min(alpha, 1 - CONFIDENCE) and not low <= 0 <= high:
            verdict = "better" if (difference > 0) == is_more_better else "worse"
        return Behind(difference, (low, high), p_value, verdict)

    def interval(self, place: int) -> Interval | None:
        """95 % interval of a mean score: see `Ranked`."""
        from scipy.stats import t

        if self.metric == "accuracy":
            return self._share_interval(place)
        if self.aligned or self.noise is None:
            return None
        deviation, freedom = self.noise
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * deviation
        half /= math.sqrt(len(self.entrants[place].scores))
        return self.means[place] - half, self.means[place] + half

    def _share_interval(self, place: int) -> Interval:
        """Wilson's, with as many rows as would be as sure without the luck of seeds.

        Effective rows, and fewer of them where few seeds say what seeds do (Korn and Graubard
        1998, Survey Methodology 24).
        """
        from scipy.stats import t

        share, rows, right = self.means[place], self.rows, self.shares[place]
        if self.noise is None or rows < 2:
            return wilson_interval(share * rows, rows)
        deviation, freedom = self.noise
        inner = (share * rows + 2) / (rows + 4)  # off 0 and 1, where rows show no variance
        from_rows = (float(right.var(ddof=1)) or inner * (1 - inner)) / rows
        from_seeds = deviation**2 / len(self.entrants[place].scores)
        variance = from_rows + from_seeds
        known = variance**2 / (from_rows**2 / (rows - 1) + from_seeds**2 / freedom)
        tail = (1 + CONFIDENCE) / 2
        widened = variance * (float(t.ppf(tail, known)) / NormalDist().inv_cdf(tail)) ** 2
        effective = (share * (1 - share) or inner * (1 - inner)) / widened
        return wilson_interval(share * effective, effective)

    def corrected(self, seed: int) -> BestOfMany | None:
        """What the best is likely to come to; None without common rows."""
        if not self.aligned:
            return None
        return best_of_many(self.metric or "accuracy", self.aligned, seed=seed)

    def rows_needed(self, order: Sequence[int], alpha: float) -> int | None:
        """Rows that would tell the first two of `order` apart; None where that is not known."""
        if self.basis != "rows" or self.metric != "accuracy" or len(order) < 2:
            return None
        assert self.pairs is not None
        assert self.pairs.only is not None
        first, second = order[:2]
        only = self.pairs.only
        level = min(alpha, 1 - CONFIDENCE) / self.comparisons
        return required_rows(int(only[second, first]), int(only[first, second]), self.rows, level)


def _aligned(answers: Sequence[BySeed]) -> list[dict[int, list[Answer]]]:
    by_id = [
        {seed: {answer.id: answer for answer in run} for seed, run in one.items()}
        for one in answers
    ]
    runs = [run for one in by_id for run in one.values()]
    expected = [{row: answer.expected for row, answer in run.items()} for run in runs]
    if not all(by_id) or not expected[0] or any(one != expected[0] for one in expected):
        return []
    return [
        {seed: [run[row] for row in expected[0]] for seed, run in one.items()} for one in by_id
    ]
