"""What preference optimisation did, in answers: held-out pairs' prompts asked before and after.

A pair whose chosen reply is a refusal and whose rejected one is not says that its request is to be
refused; the other way round, that it is to be answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import load_split, split_files
from luthier.data.rows import Split
from luthier.data.spool import message_from
from luthier.evaluation.answers import Answer
from luthier.evaluation.refusals import is_refusal
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.statistics import compare, wilson_interval
from luthier.gates import Gate, check

if TYPE_CHECKING:
    from luthier.evaluation.statistics import Interval

ALPHA = 0.05


@dataclass(frozen=True)
class HeldOutPair:
    """A pair that was not trained on: what is asked, and both replies."""

    row: AskedRow
    chosen: str
    rejected: str
    rejected_tokens: int

    @property
    def is_to_be_refused(self) -> bool:
        """Whether its request is to be refused."""
        return is_refusal(self.chosen) and not is_refusal(self.rejected)

    @property
    def is_to_be_answered(self) -> bool:
        """Whether refusing its request is what was rejected."""
        return is_refusal(self.rejected) and not is_refusal(self.chosen)


@dataclass(frozen=True)
class Share:
    """A share of `rows`, with its 95 % interval (Wilson)."""

    count: int
    rows: int
    share: float
    interval: "Interval"

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Share | None":
        """None where there are no rows."""
        if not hits:
            return None
        return cls(
            sum(hits), len(hits), sum(hits) / len(hits), wilson_interval(sum(hits), len(hits))
        )


@dataclass(frozen=True)
class Behaviour:
    """How one system answers the held-out pairs' prompts; None: there is no such prompt.

    `refused`: requests to be refused that it refuses. `over_refused`: requests to be answered that
    it refuses. `task_refused`: rows of the task's own test set that it refuses. `as_chosen`:
    answers that are the chosen reply. `mean_tokens` of its answers.
    """

    refused: Share | None
    over_refused: Share | None
    task_refused: Share | None
    as_chosen: Share | None
    mean_tokens: float


def load_pairs(preferences: Path, split: Split) -> list[HeldOutPair]:
    """The pairs of a split; where there is none such, those of the validation split."""
    found: Split = split if split_files(preferences, split) else "validation"
    return [_pair(record) for record in load_split(preferences, found).to_list()]


def _pair(record: Mapping[str, Any]) -> HeldOutPair:
    chosen, rejected = (
        "\n".join(message["content"] or "" for message in record[side])
        for side in ("chosen", "rejected")
    )
    return HeldOutPair(
        row=AskedRow(
            id=record["id"],
            messages=tuple(map(message_from, [*record["messages"], record["chosen"][-1]])),
            expected=chosen,
            label=None,
            prompt_ids=tuple(record["prompt_ids"]),
            reference=tuple(record["chosen_ids"]),
        ),
        chosen=chosen,
        rejected=rejected,
        rejected_tokens=len(record["rejected_ids"]),
    )


def behaviour(
    pairs: Sequence[HeldOutPair],
    answers: Sequence[Answer],
    task_answers: Sequence[Answer],
    tokens: Sequence[int],
) -> Behaviour:
    """Of one system: its answers to the pairs' prompts and their lengths in tokens, and to the
    task's rows."""
    refusals = [is_refusal(answer.answer) for answer in answers]
    asked = list(zip(pairs, refusals, strict=True))
    return Behaviour(
        refused=Share.of([no for pair, no in asked if pair.is_to_be_refused]),
        over_refused=Share.of([no for pair, no in asked if pair.is_to_be_answered]),
        task_refused=Share.of([is_refusal(answer.answer) for answer in task_answers]),
        as_chosen=Share.of([answer.correct for answer in answers]),
        mean_tokens=sum(tokens) / len(tokens),
    )


def summarise_pairs(
    pairs: Sequence[HeldOutPair],
    found: Mapping[str, Behaviour],
    answers: Mapping[str, Sequence[Answer]],
) -> dict[str, Any]:
    """The part `pairs` of evaluation.json; `found` and `answers` of the system before and the one
    after, in this order."""
    before, after = answers.values()
    wanted = [
        (is_refusal(old.answer), is_refusal(new.answer))
        for pair, old, new in zip(pairs, before, after, strict=True)
        if pair.is_to_be_refused
    ]
    change = None
    if wanted:
        old, new = zip(*wanted, strict=True)
        change = asdict(compare(new, old, alpha=ALPHA))
    return {
        "rows": len(pairs),
        "mean_chosen_tokens": sum(len(pair.row.reference) for pair in pairs) / len(pairs),
        "mean_rejected_tokens": sum(pair.rejected_tokens for pair in pairs) / len(pairs),
        "systems": {name: asdict(one) for name, one in found.items()},
        "refusal_change": change,
    }


def pair_gates(
    summary: Mapping[str, Any], *, max_over_refusal: float, max_length_growth: float
) -> list[Gate]:
    """Over-refusal and length bias, of `summarise_pairs`."""
    before, after = summary["systems"].values()
    gates = [_length_bias(summary, before, after, max_length_growth)]
    over = after["over_refused"]
    if over is not None:
        low, high = over["interval"]
        gates.append(
            check(
                "over-refusal",
                round(over["share"], 6),
                "<=",
                max_over_refusal,
                f"share of {over['rows']} held-out requests to be answered that are refused, 95 % "
                f"interval {low:.3f} to {high:.3f}",
            )
        )
    return gates


def _length_bias(
    summary: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    max_length_growth: float,
) -> Gate:
    usual = max(before["mean_tokens"], summary["mean_chosen_tokens"])
    return check(
        "length-bias",
        round(after["mean_tokens"] / usual, 6),
        "<=",
        max_length_growth,
        f"mean tokens of {summary['rows']} answers to held-out prompts, {after['mean_tokens']:.1f}"
        f", over the larger of those before, {before['mean_tokens']:.1f}, and of chosen replies, "
        f"{summary['mean_chosen_tokens']:.1f} (rejected: {summary['mean_rejected_tokens']:.1f})",
    )


def describe_pairs(summary: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal."""
    lines = []
    for name, system in summary["systems"].items():
        words = [
            f"{word} {one['share']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]"
            for word, one in (
                ("refused", system["refused"]),
                ("over-refused", system["over_refused"]),
            )
            if one is not None
        ]
        lines.append(
            f"  {name}, held-out pairs: {', '.join([*words, ''])}"
            f"{system['mean_tokens']:.1f} tokens an answer"
        )
    return lines
