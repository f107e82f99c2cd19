"""Wrong answers to look at: one of each frequent confusion first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import split_files
from luthier.report.scores import Scores
from luthier.store import Artifact

if TYPE_CHECKING:
    from luthier.data.rows import Split
    from luthier.evaluation.answers import Answer

SHOWN_ANSWERS = 10
_LONGEST_TEXT = 400


@dataclass(frozen=True)
class WrongAnswer:
    """One row: what was asked, expected and answered; `alike` rows have the same confusion."""

    text: str
    expected: str
    answer: str
    alike: int


@dataclass(frozen=True)
class WrongAnswers:
    """Some of `total` wrong answers of one system; `by_pair` where classes can be confused."""

    title: str
    total: int
    by_pair: bool
    rows: Sequence[WrongAnswer]


def wrong_answers(artifacts: Mapping[str, Artifact], scores: Scores) -> WrongAnswers | None:
    """Up to ten wrong answers of the tuned system, with the text that was asked."""
    from luthier.evaluation.answers import read_answers

    if scores.tuned is None or "evaluate" not in artifacts:
        return None
    answers = read_answers(artifacts["evaluate"].path)[scores.tuned]
    wrong = [answer for answer in answers if not answer.correct]
    if not wrong:
        return None
    by_pair = bool(scores.classes)
    alike = Counter(_pair(answer) for answer in wrong)
    chosen = _varied(wrong, alike)[:SHOWN_ANSWERS] if by_pair else wrong[:SHOWN_ANSWERS]
    texts = _texts(artifacts["prepare"], chosen, scores.split) if "prepare" in artifacts else {}
    rows = [
        WrongAnswer(
            text=_short(texts.get(answer.id, answer.id)),
            expected=_short(answer.expected),
            answer=_short(answer.answer) or "(nothing)",
            alike=alike[_pair(answer)],
        )
        for answer in chosen
    ]
    return WrongAnswers(scores.tuned_title, len(wrong), by_pair, rows)


def error_analysis(artifacts: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """errors.json of the evaluation; None where there is none."""
    from luthier.evaluation.slices import read_errors

    return read_errors(artifacts["evaluate"].path) if "evaluate" in artifacts else None


def _pair(answer: "Answer") -> tuple[str, str | None]:
    return answer.expected, answer.predicted


def _varied(
    wrong: "Sequence[Answer]", alike: Mapping[tuple[str, str | None], int]
) -> "list[Answer]":
    """The first of each confusion, the frequent ones first; then the second of each, and so on."""
    seen: Counter[tuple[str, str | None]] = Counter()
    turns = []
    for answer in wrong:
        turns.append(seen[_pair(answer)])
        seen[_pair(answer)] += 1
    order = sorted(range(len(wrong)), key=lambda i: (turns[i], -alike[_pair(wrong[i])], i))
    return [wrong[i] for i in order]


def _texts(dataset: Artifact, answers: "Sequence[Answer]", split: "Split") -> dict[str, str]:
    """What was asked, by row id: the conversation before the reply, without its system message."""
    import pyarrow.parquet as pq

    ids = [answer.id for answer in answers]
    texts: dict[str, str] = {}
    for path in split_files(dataset.path, split):
        table = pq.read_table(path, columns=["id", "messages"], filters=[("id", "in", ids)])
        texts |= {row["id"]: _asked(row["messages"]) for row in table.to_pylist()}
    return texts


def _asked(messages: Sequence[Mapping[str, str]]) -> str:
    asked = [message for message in messages[:-1] if message["role"] != "system"]
    if len(asked) == 1:
        return asked[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
