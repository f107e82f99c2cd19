"""Metrics of extraction: is the answer JSON, does it follow the schema, which fields are right."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.data.formats.json_target import target_of
from luthier.data.rows import RowError
from luthier.data.strict_json import json_value
from luthier.evaluation.answers import Answer
from luthier.evaluation.registry import Answered, metric
from luthier.evaluation.statistics import Interval, mean_share_interval, wilson_interval

_NO_JSON = object()
_Leaves = Counter[tuple[str, str]]


def _valid(answered: Answered) -> list[bool]:
    return [_json(answer.answer) is not _NO_JSON for answer in answered.answers]


def _json(text: str) -> Any:
    try:
        return json_value(text)
    except RowError:
        return _NO_JSON


def _valid_interval(answered: Answered) -> Interval:
    return wilson_interval(sum(_valid(answered)), len(answered.answers))


@metric("extraction", interval=_valid_interval)
def valid_json(answered: Answered) -> float:
    """Share of answers that are JSON and nothing else; NaN and repeated keys are none.

    Interval: Wilson.
    """
    return sum(_valid(answered)) / len(answered.answers)


def _following(answered: Answered) -> list[bool] | None:
    if answered.json_schema is None:
        return None
    target = target_of(answered.json_schema)
    found = []
    for answer in answered.answers:
        try:
            target.spell(answer.answer)
        except RowError:
            found.append(False)
        else:
            found.append(True)
    return found


def _following_interval(answered: Answered) -> Interval | None:
    found = _following(answered)
    return None if found is None else wilson_interval(sum(found), len(found))


@metric("extraction", interval=_following_interval)
def schema_valid(answered: Answered) -> float | None:
    """Share of answers that follow the data set's JSON Schema; None where it has none.

    Interval: Wilson.
    """
    found = _following(answered)
    return None if found is None else sum(found) / len(found)


def _same(answered: Answered) -> list[bool]:
    return [
        (found := _json(answer.answer)) is not _NO_JSON
        and _leaves(found) == _leaves(_json(answer.expected))
        for answer in answered.answers
    ]


def _same_interval(answered: Answered) -> Interval:
    return wilson_interval(sum(_same(answered)), len(answered.answers))


@metric("extraction", interval=_same_interval)
def same_json(answered: Answered) -> float:
    """Share of answers with the expected value, however its keys are ordered and it is spaced.

    Interval: Wilson.
    """
    return sum(_same(answered)) / len(answered.answers)


def _fields(answered: Answered) -> tuple[list[float], list[float], list[float]]:
    """Of each row: leaves that are right, leaves answered, leaves expected."""
    hits, found, wanted = [], [], []
    for answer in answered.answers:
        said, expected = _leaves(_json(answer.answer)), _leaves(_json(answer.expected))
        hits.append(float((said & expected).total()))
        found.append(float(said.total()))
        wanted.append(float(expected.total()))
    return hits, found, wanted


def _precision_interval(answered: Answered) -> Interval | None:
    hits, found, _ = _fields(answered)
    return mean_share_interval(hits, found) if sum(found) else None


@metric("extraction", interval=_precision_interval)
def field_precision(answered: Answered) -> float | None:
    """Share of the leaves answered that are expected: the same path with the same value.

    Over all rows together; a path is its keys and its places in lists. An answer that is no JSON
    has no leaves. None where no answer has any. Interval: Wilson with the effective number of
    leaves, as rows are drawn and not leaves.
    """
    hits, found, _ = _fields(answered)
    return sum(hits) / sum(found) if sum(found) else None


def _recall_interval(answered: Answered) -> Interval | None:
    hits, _, wanted = _fields(answered)
    return mean_share_interval(hits, wanted) if sum(wanted) else None


@metric("extraction", interval=_recall_interval)
def field_recall(answered: Answered) -> float | None:
    """Share of the leaves expected that are answered; else as field_precision."""
    hits, _, wanted = _fields(answered)
    return sum(hits) / sum(wanted) if sum(wanted) else None


def _field_f1_parts(answered: Answered) -> tuple[list[float], list[float]]:
    hits, found, wanted = _fields(answered)
    return [2 * one for one in hits], [a + b for a, b in zip(found, wanted, strict=True)]


def _field_f1_interval(answered: Answered) -> Interval | None:
    hits, both = _field_f1_parts(answered)
    return mean_share_interval(hits, both) if sum(both) else None


@metric("extraction", interval=_field_f1_interval)
def field_f1(answered: Answered) -> float | None:
    """Micro-F1 of the leaves, of field_precision and field_recall; None without any leaf."""
    hits, both = _field_f1_parts(answered)
    return sum(hits) / sum(both) if sum(both) else None


def _leaves(value: Any) -> _Leaves:
    """Path and value of each leaf, spelled; of what is no JSON none. 1 and 1.0 are the same."""
    return Counter() if value is _NO_JSON else Counter(_flat(value, "$"))


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            yield from _flat(item, f"{path}[{place}]")
    else:
        is_whole = isinstance(value, float) and value.is_integer()
        yield path, json.dumps(int(value) if is_whole else value)


@metric("extraction")
def key_accuracy(answered: Answered) -> dict[str, dict[str, Any]]:
    """Of each key of the expected objects: the share of rows whose answer has its value there, and
    its 95 % interval (Wilson). Empty where an expected reply is no JSON object."""
    return {
        key: {
            "share": sum(hits) / len(hits),
            "interval": list(wilson_interval(sum(hits), len(hits))),
            "rows": len(hits),
        }
        for key, hits in key_hits(answered.answers).items()
    }


def key_hits(answers: Sequence[Answer]) -> dict[str, list[bool]]:
    """Of each key of the expected objects: whether each answer has the expected value there, in
    the order of those rows that expect it."""
    hits: dict[str, list[bool]] = {}
    for answer in answers:
        expected, found = json_object(answer.expected), json_object(answer.answer)
        if expected is None:
            return {}
        for key, value in expected.items():
            hits.setdefault(key, []).append(found is not None and found.get(key) == value)
    return hits


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
