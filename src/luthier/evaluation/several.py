"""Several evaluated models on the same rows: each against the first, and over training seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.statistics import (
    CONFIDENCE,
    Interval,
    OverSeeds,
    PairedTest,
    PairedVerdict,
    compare,
    difference_of_means,
    holm,
    over_seeds,
    wilson_interval,
)


@dataclass(frozen=True)
class Contestant:
    """One evaluated model: its answers, the seed it was made with, and what stands for all else
    that it was made from. `score` is the task's first metric."""

    name: str
    answers: Sequence[Answer]
    seed: int | None
    made_by: str
    score: float


@dataclass(frozen=True)
class Placed:
    """One model on the common rows. `test` is against the first one, None of the first itself;
    its p-value and verdict allow for the number of models that are compared (Holm 1979)."""

    name: str
    correct: int
    accuracy: float
    interval: Interval
    test: PairedTest | None


@dataclass(frozen=True)
class SeedGroup:
    """Models that differ in their seed alone; `change` against the first group, where both have
    two seeds or more: the difference of their means, and whether seeds explain it."""

    names: Sequence[str]
    seeds: Sequence[int]
    scores: OverSeeds
    change: float | None = None
    change_interval: Interval | None = None
    verdict: PairedVerdict | None = None


@dataclass(frozen=True)
class Several:
    """What comes of it. `left_out` rows were not answered by all."""

    rows: int
    left_out: int
    placed: Sequence[Placed]
    groups: Sequence[SeedGroup]


def compare_several(contestants: Sequence[Contestant], *, alpha: float) -> Several:
    """Compare each with the first, on the rows that all answered.

    Raises:
        DataError: they have no row in common, or expect different answers to the same row.
    """
    by_id = [{answer.id: answer for answer in one.answers} for one in contestants]
    shared = [answer.id for answer in contestants[0].answers if all(answer.id in o for o in by_id)]
    if not shared:
        raise DataError(
            f"{' and '.join(one.name for one in contestants)} have no row in common. What is "
            "to be compared must be evaluated on the same rows."
        )
    _refuse_other_answers(contestants, by_id, shared)
    right = [[found[row].correct for row in shared] for found in by_id]
    tests = [compare(one, right[0], alpha=alpha) for one in right[1:]]
    adjusted = holm([test.p_value for test in tests])
    placed = [
        Placed(
            name=one.name,
            correct=sum(hits),
            accuracy=sum(hits) / len(shared),
            interval=wilson_interval(sum(hits), len(shared)),
            test=test,
        )
        for one, hits, test in zip(
            contestants,
            right,
            [None, *(_corrected(t, p, alpha) for t, p in zip(tests, adjusted, strict=True))],
            strict=True,
        )
    ]
    all_rows = {row for found in by_id for row in found}
    return Several(len(shared), len(all_rows) - len(shared), placed, group_seeds(contestants))


def group_seeds(contestants: Sequence[Contestant]) -> list[SeedGroup]:
    """Those of which there are several seeds, in the order of their first."""
    made: dict[str, dict[int, Contestant]] = {}
    for one in contestants:
        if one.seed is not None:
            made.setdefault(one.made_by, {}).setdefault(one.seed, one)
    groups: list[SeedGroup] = []
    first: list[float] = []
    for by_seed in made.values():
        if len(by_seed) < 2:
            continue
        scores = [one.score for one in by_seed.values()]
        group = SeedGroup(
            names=[one.name for one in by_seed.values()],
            seeds=list(by_seed),
            scores=over_seeds(scores),
        )
        groups.append(_against(group, scores, first) if first else group)
        first = first or scores
    return groups


def _against(group: SeedGroup, scores: Sequence[float], first: Sequence[float]) -> SeedGroup:
    change, (low, high) = difference_of_means(scores, first)
    verdict: PairedVerdict = "better" if low > 0 else "worse" if high < 0 else "cannot tell"
    return replace(group, change=change, change_interval=(low, high), verdict=verdict)


def _corrected(test: PairedTest, p_value: float, alpha: float) -> PairedTest:
    """With the p-value that allows for many, and no verdict that it does not bear out."""
    level = min(alpha, 1 - CONFIDENCE)
    return replace(
        test, p_value=p_value, verdict=test.verdict if p_value < level else "cannot tell"
    )


def _refuse_other_answers(
    contestants: Sequence[Contestant], by_id: Sequence[Mapping[str, Answer]], shared: Sequence[str]
) -> None:
    for one, found in zip(contestants[1:], by_id[1:], strict=True):
        unlike = [row for row in shared if found[row].expected != by_id[0][row].expected]
        if unlike:
            raise DataError(
                f"{one.name} and {contestants[0].name} expect different answers to "
                f"{len(unlike)} rows, the first of them {unlike[0]}: their datasets differ. "
                "Evaluate both on one dataset."
            )
