"""What dpo did to the answers: every share before and after it, with intervals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.report.scores import metric_word
from luthier.store import Artifact


@dataclass(frozen=True)
class Portion:
    """A share, or a macro-F1, with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Effect:
    """One measure of the SFT adapter and of the model after dpo, on the same `rows`; `difference`
    is paired, None where it was not tested."""

    what: str
    before: Portion
    after: Portion
    rows: int
    difference: Portion | None


def read_effects(artifacts: Mapping[str, Artifact]) -> list[Effect]:
    """Of the evaluation after dpo; empty without one.

    Raises:
        DataError: the evaluation cannot be read.
    """
    from luthier.evaluation.summary import read_summary

    if "evaluate" not in artifacts:
        return []
    found = read_summary(artifacts["evaluate"].path)
    if "kept" not in found:
        return []
    return [*_of_task(found), *_of_pairs(found["pairs"])]


def _of_task(found: Mapping[str, Any]) -> Iterator[Effect]:
    tests = {"whole": found["kept"]["whole"], **found["kept"]["keys"]}
    for name, test in tests.items():
        what = metric_word(found["primary_metric"]) if name == "whole" else f"right {name}"
        yield Effect(
            f"task: {what}",
            _wilson(test["old_accuracy"], test["rows"]),
            _wilson(test["new_accuracy"], test["rows"]),
            test["rows"],
            Portion(test["difference"], *test["interval"]),
        )
    if change := found["kept"].get("macro_f1"):
        yield Effect(
            f"task: {metric_word('macro_f1')}",
            Portion(change["old"], *change["old_interval"]),
            Portion(change["new"], *change["new_interval"]),
            found["kept"]["whole"]["rows"],
            Portion(change["difference"], *change["interval"]),
        )


def _of_pairs(pairs: Mapping[str, Any]) -> Iterator[Effect]:
    before, after = pairs["systems"].values()
    change = pairs["refusal_change"]
    for name, what in (
        ("refused", "out of scope: refused"),
        ("over_refused", "in scope: refused"),
        ("task_refused", "task: refused"),
        ("as_chosen", "answers as chosen"),
    ):
        old, new = before[name], after[name]
        if old is not None and new is not None:
            tested = change if name == "refused" else None
            yield Effect(
                what,
                Portion(old["share"], *old["interval"]),
                Portion(new["share"], *new["interval"]),
                new["rows"],
                Portion(tested["difference"], *tested["interval"]) if tested else None,
            )


def _wilson(share: float, rows: int) -> Portion:
    from luthier.evaluation.statistics import wilson_interval

    return Portion(share, *wilson_interval(round(share * rows), rows))
