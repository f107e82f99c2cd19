"""`prepare.answer_regex`: the part of a reply that counts, from the rows to the score."""

import json

import pytest

from luthier.data.final_answer import final_answer, same_answer
from luthier.data.formats import FormatOptions, parse
from luthier.data.formats.registry import ROW_FORMATS
from luthier.data.rows import RawRow, RowError
from luthier.data.section import PrepareSection
from luthier.errors import DataError
from luthier.evaluation.answers import generated
from luthier.evaluation.pair_rules import Drawn, drawn_from, gold, shorter
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.systems import Reply, Sample

GSM8K = r"#### (-?[0-9.,]+)"


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (GSM8K, "3 * 4 = 12\n#### 12", "12"),
        (GSM8K, "#### 1, no\n#### 12", "12"),
        (GSM8K, "12", None),
        (r"\d+", "call 112 or 911", "911"),
        (r"(a)|b", "b", None),
        (r"answer:(.*)", "answer:  yes ", "yes"),
    ],
)
def test_the_first_group_of_the_last_match(pattern: str, text: str, found: str | None) -> None:
    assert final_answer(pattern, text) == found


def test_nothing_found_twice_is_not_the_same() -> None:
    assert same_answer(GSM8K, "so #### 7", "#### 7")
    assert not same_answer(GSM8K, "none", "none")


def test_a_pattern_that_never_ends_is_said() -> None:
    with pytest.raises(DataError, match=r"answer_regex: .* takes more than 2 s on 'aaa"):
        final_answer(r"(a|aa)+$", "a" * 60 + "b")


def test_answers_are_right_where_the_same_is_found() -> None:
    messages = ({"role": "user", "content": "3 * 4"}, {"role": "assistant", "content": "#### 12"})
    rows = [AskedRow(f"r{n}", messages, "Well, #### 12", None, (), ()) for n in range(3)]
    said = ["12 it is: #### 12", "#### 13", "12"]
    replies = [Reply(row.id, text, "stop") for row, text in zip(rows, said, strict=True)]
    answers = generated("s", rows, replies, [], "exact", answer_regex=GSM8K)
    assert [(one.predicted, one.correct) for one in answers] == [
        ("12", True), ("13", False), (None, False),
    ]  # fmt: skip
    drawn: Drawn = drawn_from(
        rows[0],
        Reply("r0", said[0], "stop", samples=(Sample(said[1], "stop"), Sample("#### 12", "stop"))),
        [],
        GSM8K,
    )
    assert not isinstance(pair := gold(drawn), str)
    assert pair.rejected == said[1]
    assert not isinstance(pair := shorter(drawn), str)
    assert (pair.chosen, pair.rejected) == ("#### 12", said[0])


def test_a_row_without_an_answer_is_quarantined() -> None:
    row_format = ROW_FORMATS["prompt_completion"]
    options = FormatOptions(answer_regex=GSM8K)
    good = RawRow("a", 1, {"prompt": "3 * 4", "completion": "#### 12"})
    assert parse(good, row_format, {}, options).messages
    bad = RawRow("a", 2, {"prompt": "3 * 4", "completion": "12"})
    with pytest.raises(RowError, match="answer-not-found"):
        parse(bad, row_format, {}, options)


@pytest.mark.parametrize(
    ("task", "pattern", "said"),
    [
        ("chat", "(", "is no regular expression: missing \\)"),
        ("classification", "x", "only to chat and completion"),
    ],
)
def test_mistakes_in_the_config(task: str, pattern: str, said: str) -> None:
    fields = {
        "task": task,
        "sources": [{"path": "x.jsonl", "split": "train"}],
        "answer_regex": pattern,
    }
    with pytest.raises(ValueError, match=said):
        PrepareSection.model_validate_json(json.dumps(fields))
