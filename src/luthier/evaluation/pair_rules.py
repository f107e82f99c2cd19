"""From a model's own answers to pairs of a better and a worse reply.

A rule looks at one prompt, the reply that is expected and the different answers that were drawn,
and makes one pair of them, or says why not. What is nearly the same on both sides teaches nothing
and is dropped.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.data.final_answer import same_answer
from luthier.evaluation.labels import read_exact, read_lenient
from luthier.evaluation.metrics import json_object
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.systems import Reply

Rule = Literal["gold", "valid_json", "shorter", "judge"]
Why = Literal[
    "no answer ended by itself",
    "no wrong answer",
    "no invalid answer",
    "fewer than two right answers",
    "fewer than two answers",
    "near tie",
    "not scored",
]
# Of "shorter": the shorter answer is at most this share of the longer one.
MAX_LENGTH_RATIO = 0.8


@dataclass(frozen=True)
class Drawn:
    """One prompt with its expected reply and the different answers to it, the most frequent first.

    `counts` are how often each was drawn; answers that were cut off are left out. `scores` are a
    judge's, one an answer; `answer_regex` is the dataset's.
    """

    row: AskedRow
    labels: Sequence[str]
    answers: Sequence[str]
    counts: Sequence[int]
    scores: Sequence[float] | None = None
    answer_regex: str | None = None

    def is_right(self, answer: str, *, leniently: bool = False) -> bool:
        """Whether an answer says what is expected: the label, the same JSON, or the same text."""
        if self.labels:
            read = read_lenient if leniently else read_exact
            return read(answer, self.labels) == self.row.expected
        if self.answer_regex is not None:
            return same_answer(self.answer_regex, answer, self.row.expected)
        expected = json_object(self.row.expected)
        if expected is not None:
            return json_object(answer) == expected
        return answer.strip() == self.row.expected.strip()


@dataclass(frozen=True)
class MadePair:
    """A pair, and what is to be known of how it came about."""

    chosen: str
    rejected: str
    facts: Mapping[str, Any]


def drawn_from(
    row: AskedRow, reply: Reply, labels: Sequence[str], answer_regex: str | None = None
) -> Drawn:
    """The answers of a reply, the greedy one among them, that ended by themselves."""
    said = [(reply.text, reply.stop_reason)]
    said += [(sample.text, sample.stop_reason) for sample in reply.samples]
    counts = Counter(text.strip() for text, reason in said if reason == "stop" and text.strip())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Drawn(
        row,
        labels,
        [text for text, _ in ordered],
        [number for _, number in ordered],
        answer_regex=answer_regex,
    )


def gold(drawn: Drawn) -> MadePair | Why:
    """The expected reply against the most frequent answer that is wrong."""
    for answer, count in zip(drawn.answers, drawn.counts, strict=True):
        if not drawn.is_right(answer):
            if _alike(answer, drawn.row.expected):
                return "near tie"
            return MadePair(drawn.row.expected, answer, {"times_drawn": count})
    return "no wrong answer" if drawn.answers else "no answer ended by itself"


def valid_json(drawn: Drawn) -> MadePair | Why:
    """The most frequent right answer that is JSON, else the expected reply, against the most
    frequent answer that is not JSON."""
    valid = [one for one in drawn.answers if json_object(one) is not None and drawn.is_right(one)]
    for answer, count in zip(drawn.answers, drawn.counts, strict=True):
        if json_object(answer) is None:
            chosen = valid[0] if valid else drawn.row.expected
            return MadePair(chosen, answer, {"times_drawn": count, "is_own": bool(valid)})
    return "no invalid answer" if drawn.answers else "no answer ended by itself"


def shorter(drawn: Drawn) -> MadePair | Why:
    """The shortest right answer against the longest right one."""
    right = [one for one in drawn.answers if drawn.is_right(one, leniently=True)]
    if len(right) < 2:
        return "fewer than two right answers"
    right.sort(key=lambda answer: (len(answer), answer))
    ratio = len(right[0]) / len(right[-1])
    if ratio > MAX_LENGTH_RATIO:
        return "near tie"
    return MadePair(right[0], right[-1], {"length_ratio": round(ratio, 3)})


def judged(drawn: Drawn, min_margin: float) -> MadePair | Why:
    """The answer with the highest score against the one with the lowest."""
    if len(drawn.answers) < 2:
        return "fewer than two answers"
    if drawn.scores is None:
        return "not scored"
    ranked = sorted(zip(drawn.scores, drawn.answers, strict=True))
    (low, rejected), (high, chosen) = ranked[0], ranked[-1]
    if high - low < min_margin or _alike(chosen, rejected):
        return "near tie"
    return MadePair(chosen, rejected, {"scores": [high, low]})


RULES: Mapping[Rule, Callable[[Drawn], MadePair | Why]] = {
    "gold": gold,
    "valid_json": valid_json,
    "shorter": shorter,
}


def _alike(one: str, other: str) -> bool:
    """Whether two texts differ by case and blanks only."""
    return "".join(one.split()).casefold() == "".join(other.split()).casefold()
