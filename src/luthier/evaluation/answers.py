"""Answers: replies read as what the task wants, one row each in answers.parquet."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from luthier.data.final_answer import final_answer, same_answer
from luthier.errors import DataError
from luthier.evaluation.engine import StopReason
from luthier.evaluation.labels import read_exact, read_lenient
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.systems import Reply
from luthier.store.files import write_atomically

ANSWERS_NAME = "answers.parquet"

Scoring = Literal["generation", "likelihood"]
Reading = Literal["exact", "lenient"]
_READERS: dict[Reading, Callable[[str, Sequence[str]], str | None]] = {
    "exact": read_exact,
    "lenient": read_lenient,
}
_DECIMALS = 6  # of a log-probability


@dataclass(frozen=True)
class Answer:
    """One row of answers.parquet.

    `predicted` is the label read out of the answer, or what `answer_regex` finds in it, None for
    none; for other tasks the answer itself. `label_log_probability` has a value for each label of
    the dataset, null where the label was ruled out early because it cannot be the likeliest.
    Log-probabilities in nats.
    """

    system: str
    id: str
    expected: str
    answer: str
    predicted: str | None
    correct: bool
    stop_reason: StopReason
    label_log_probability: list[float | None] | None
    reference_log_probability: float | None
    reference_tokens: int | None


def generated(
    system: str,
    rows: Sequence[AskedRow],
    replies: Sequence[Reply],
    labels: Sequence[str],
    reading: Reading,
    *,
    answer_regex: str | None = None,
) -> list[Answer]:
    """Free answers, read as labels where the task has labels; with `answer_regex` as what it finds
    in them, which is right where it finds the same in the expected reply."""
    read = _READERS[reading]
    answers = []
    for row, reply in zip(rows, replies, strict=True):
        if answer_regex is not None:
            predicted = final_answer(answer_regex, reply.text)
            correct = same_answer(answer_regex, reply.text, row.expected)
        elif labels:
            predicted = read(reply.text, labels)
            correct = predicted == row.expected
        else:
            predicted = reply.text
            correct = reply.text.strip() == row.expected.strip()
        answers.append(
            Answer(
                system=system,
                id=row.id,
                expected=row.expected,
                answer=reply.text,
                predicted=predicted,
                correct=correct,
                stop_reason=reply.stop_reason,
                label_log_probability=None,
                reference_log_probability=_rounded(reply.reference_log_p),
                reference_tokens=len(row.reference) if reply.reference_log_p is not None else None,
            )
        )
    return answers


def likeliest(
    system: str, rows: Sequence[AskedRow], replies: Sequence[Reply], labels: Sequence[str]
) -> list[Answer]:
    """The label with the highest probability as the whole answer; of equal ones the first."""
    answers = []
    for row, reply in zip(rows, replies, strict=True):
        assert reply.label_log_p is not None
        scores = [_rounded(score) for score in reply.label_log_p]
        known = [-math.inf if score is None else score for score in scores]
        answers.append(labelled(system, row, labels[known.index(max(known))], scores))
    return answers


def labelled(
    system: str, row: AskedRow, label: str, scores: list[float | None] | None = None
) -> Answer:
    """A label as the whole answer, of a system that writes no text."""
    return Answer(
        system=system,
        id=row.id,
        expected=row.expected,
        answer=label,
        predicted=label,
        correct=label == row.expected,
        stop_reason="stop",
        label_log_probability=scores,
        reference_log_probability=None,
        reference_tokens=None,
    )


def write_answers(folder: Path, answers: Sequence[Answer]) -> None:
    """Write answers.parquet: systems one after another, rows in the dataset's order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "correct": pa.bool_(),
        "label_log_probability": pa.list_(pa.float64()),
        "reference_log_probability": pa.float64(),
        "reference_tokens": pa.int32(),
    }
    schema = pa.schema(
        [(field.name, types.get(field.name, pa.string())) for field in fields(Answer)]
    )
    sink = io.BytesIO()
    table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=schema)
    pq.write_table(table, sink, compression="zstd")
    write_atomically(folder / ANSWERS_NAME, sink.getvalue())


def read_answers(folder: Path) -> dict[str, list[Answer]]:
    """The answers of an evaluation artifact by system, in row order.

    Raises:
        DataError: the folder has no readable answers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / ANSWERS_NAME
    try:
        records: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        answers = [Answer(**record) for record in records]
    except (OSError, pa.ArrowException, TypeError) as error:
        raise DataError(f"{path}: no answers of this version of Luthier ({error}).") from error
    by_system: dict[str, list[Answer]] = {}
    for answer in answers:
        by_system.setdefault(answer.system, []).append(answer)
    return by_system


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
