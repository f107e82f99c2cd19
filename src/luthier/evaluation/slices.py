"""Where a system is wrong: its score by slice, what it takes for what, which rows changed."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.evaluation.answers import Answer
from luthier.evaluation.metrics import OTHER
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.statistics import wilson_interval
from luthier.store.files import write_atomically

ERRORS_NAME = "errors.json"
_TEXT_LIMIT_CHARACTERS = 300
_EXAMPLES = 3
_QUARTERS = 4
_ROWS_A_GROUP = 2  # with fewer on average, groups say no more than rows


def length_quartiles(rows: Sequence[AskedRow]) -> list[str]:
    """Of each row the quarter of prompt lengths that it is in: `1: 12 to 34 characters`.

    Rows of one length are in the same quarter, so quarters may differ in size.
    """
    lengths = [len(row.question) for row in rows]
    ordered = sorted(lengths)
    ranks = {length: rank for rank, length in reversed(list(enumerate(ordered)))}
    quarters = [_QUARTERS * ranks[length] // len(lengths) for length in lengths]
    inside: dict[int, list[int]] = defaultdict(list)
    for quarter, length in zip(quarters, lengths, strict=True):
        inside[quarter].append(length)
    return [
        f"{quarter + 1}: {min(inside[quarter])} to {max(inside[quarter])} characters"
        for quarter in quarters
    ]


def score_by(
    answers: Sequence[Answer], values: Sequence[str | None], limit: int = 50
) -> list[dict[str, Any]]:
    """Share of right answers in each slice, with its 95 % interval (Wilson); the worst first.

    `values` name the slice of each row, None for none. Of more than `limit` slices those with the
    most rows.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for answer, value in zip(answers, values, strict=True):
        if value is not None:
            hits[value].append(answer.correct)
    largest = sorted(hits, key=lambda value: (-len(hits[value]), value))[:limit]
    found = [
        {
            "value": value[:_TEXT_LIMIT_CHARACTERS],
            "rows": len(hits[value]),
            "share": sum(hits[value]) / len(hits[value]),
            "interval": list(wilson_interval(sum(hits[value]), len(hits[value]))),
        }
        for value in largest
    ]
    return sorted(found, key=lambda one: (one["share"], -one["rows"], one["value"]))


def slices(
    answers: Sequence[Answer],
    rows: Sequence[AskedRow],
    columns: Mapping[str, Sequence[str | None]],
) -> dict[str, list[dict[str, Any]]]:
    """`score_by` the length of the prompt, the label where rows have one, and each column, a
    group, say, given as one value a row."""
    _check(answers, rows)
    found = {"length": score_by(answers, length_quartiles(rows))}
    if any(row.label is not None for row in rows):
        found["label"] = score_by(answers, [row.label for row in rows])
    return found | {name: score_by(answers, values) for name, values in columns.items()}


def confusions(
    answers: Sequence[Answer], rows: Sequence[AskedRow], limit: int = 10
) -> list[dict[str, Any]]:
    """The most frequent mistakes of a task with labels: what is expected, what is answered
    (`other` for no label), how often, and up to 3 rows of each."""
    _check(answers, rows)
    wrong: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for answer, row in zip(answers, rows, strict=True):
        if not answer.correct:
            mistake = (answer.expected, OTHER if answer.predicted is None else answer.predicted)
            wrong[mistake].append(_shown(row) | {"answer": _cut(answer.answer)})
    counts = Counter({mistake: len(found) for mistake, found in wrong.items()})
    often = sorted(counts, key=lambda mistake: (-counts[mistake], mistake))[:limit]
    return [
        {
            "expected": expected,
            "predicted": predicted,
            "rows": counts[expected, predicted],
            "examples": wrong[expected, predicted][:_EXAMPLES],
        }
        for expected, predicted in often
    ]


def changed_rows(
    old: Sequence[Answer], new: Sequence[Answer], rows: Sequence[AskedRow], limit: int = 20
) -> dict[str, Any]:
    """The rows that the new system broke, which the old one had right, and those it gained: how
    many, and the first of them with both answers."""
    _check(old, rows)
    _check(new, rows)
    found: dict[str, list[dict[str, Any]]] = {"broken": [], "gained": []}
    for before, after, row in zip(old, new, rows, strict=True):
        if before.correct != after.correct:
            found["gained" if after.correct else "broken"].append(
                _shown(row)
                | {
                    "expected": _cut(row.expected),
                    "old": _cut(before.answer),
                    "new": _cut(after.answer),
                }
            )
    return {
        name: {"rows": len(changed), "examples": changed[:limit]}
        for name, changed in found.items()
    }


def analyse_errors(
    answers: Sequence[Answer], rows: Sequence[AskedRow], old: Sequence[Answer] | None
) -> dict[str, Any]:
    """errors.json: the slices, by group too where groups are larger than a row, and by the columns
    that the dataset keeps for it; of a task with labels the confusions; and against another
    system's answers the rows broken and gained."""
    groups = [row.group for row in rows]
    columns = {"group": groups} if len(set(groups)) <= len(rows) / _ROWS_A_GROUP else {}
    for name in sorted({name for row in rows for name in row.slices}):
        columns[name] = [row.slices.get(name) for row in rows]
    has_labels = any(row.label is not None for row in rows)
    return {
        "system": answers[0].system,
        "slices": slices(answers, rows, columns),
        "confusions": confusions(answers, rows) if has_labels else [],
        "against_baseline": changed_rows(old, answers, rows) if old is not None else None,
    }


def write_errors(folder: Path, found: Mapping[str, Any]) -> None:
    """Write errors.json of an evaluation."""
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / ERRORS_NAME, text + "\n")


def read_errors(folder: Path) -> dict[str, Any] | None:
    """What `write_errors` wrote; None where there is nothing."""
    path = folder / ERRORS_NAME
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _check(answers: Sequence[Answer], rows: Sequence[AskedRow]) -> None:
    assert [answer.id for answer in answers] == [row.id for row in rows], "answers of other rows"


def _shown(row: AskedRow) -> dict[str, Any]:
    return {"id": row.id, "text": _cut(row.question)}


def _cut(text: str) -> str:
    return (
        text if len(text) <= _TEXT_LIMIT_CHARACTERS else text[: _TEXT_LIMIT_CHARACTERS - 1] + "…"
    )
