"""Error analysis on hand-made answers."""

import json
from dataclasses import replace

import pytest

from luthier.evaluation.answers import Answer
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.slices import (
    changed_rows,
    confusions,
    length_quartiles,
    score_by,
    slices,
)
from luthier.evaluation.statistics import wilson_interval

# text, expected, answered
CASES = [
    ("a", "net", "net"),
    ("bb", "net", "web"),
    ("ccc", "net", "web"),
    ("dddd", "web", "net"),
    ("eeeee", "web", None),
    ("ffffff", "web", "web"),
    ("g" * 7, "net", "web"),
    ("h" * 400, "net", "web"),
]


def case(number: int, text: str, expected: str, said: str | None) -> tuple[AskedRow, Answer]:
    messages = (
        {"role": "system", "content": "name it"},
        {"role": "user", "content": text},
        {"role": "assistant", "content": expected},
    )
    row = AskedRow(f"r{number}", messages, expected, expected, (1,), (2,))
    right = said == expected
    answer = Answer("s", row.id, expected, said or "?", said, right, "stop", None, None, None)
    return row, answer


ROWS, ANSWERS = (
    list(column)
    for column in zip(*(case(number, *one) for number, one in enumerate(CASES)), strict=True)
)


def test_quarters_of_the_prompt_s_length() -> None:
    found = length_quartiles(ROWS)
    assert found[:2] == ["1: 1 to 2 characters"] * 2
    assert found[2] == "2: 3 to 4 characters"
    assert found[-2:] == ["4: 7 to 400 characters"] * 2
    assert length_quartiles([ROWS[0]] * 5) == ["1: 1 to 1 characters"] * 5


def test_scores_by_slice_worst_first() -> None:
    found = slices(ANSWERS, ROWS, {"group": ["x", "x", "x", "x", "y", "y", None, None]})
    assert list(found) == ["length", "label", "group"]
    assert [(one["value"], one["rows"]) for one in found["label"]] == [("net", 5), ("web", 3)]
    assert found["label"][0]["share"] == pytest.approx(1 / 5)
    assert found["label"][0]["interval"] == list(wilson_interval(1, 5))
    assert [(one["value"], one["share"]) for one in found["group"]] == [("x", 0.25), ("y", 0.5)]
    assert sum(one["rows"] for one in found["length"]) == len(ROWS)
    json.dumps(found, allow_nan=False)


def test_of_many_slices_the_largest_are_kept() -> None:
    found = score_by(ANSWERS, ["a", "a", "a", "b", "b", "c", "d", "e"], limit=2)
    assert {one["value"] for one in found} == {"a", "b"}


def test_confusions_most_frequent_first_with_three_rows_each() -> None:
    first, second, third = confusions(ANSWERS, ROWS)
    assert (first["expected"], first["predicted"], first["rows"]) == ("net", "web", 4)
    assert [one["id"] for one in first["examples"]] == ["r1", "r2", "r6"]
    assert (second["expected"], second["predicted"]) == ("web", "net")
    assert (third["expected"], third["predicted"], third["rows"]) == ("web", "other", 1)
    assert third["examples"] == [{"id": "r4", "text": "eeeee", "answer": "?"}]
    assert len(confusions(ANSWERS, ROWS, limit=1)) == 1


def test_rows_that_broke_and_rows_gained() -> None:
    new = list(ANSWERS)
    new[0] = replace(new[0], answer="web", predicted="web", correct=False)
    new[7] = replace(new[7], answer="net", predicted="net", correct=True)
    found = changed_rows(ANSWERS, new, ROWS)
    broken, gained = found["broken"], found["gained"]
    assert (broken["rows"], gained["rows"]) == (1, 1)
    assert broken["examples"] == [
        {"id": "r0", "text": "a", "expected": "net", "old": "net", "new": "web"}
    ]
    assert len(gained["examples"][0]["text"]) == 300
    assert changed_rows(ANSWERS, ANSWERS, ROWS)["broken"] == {"rows": 0, "examples": []}


def test_answers_of_other_rows_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="answers of other rows"):
        confusions(ANSWERS[1:], ROWS[:-1])
