"""The prepare section: what contradicts itself is refused before any row is read."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.data.section import PrepareSection

TRAIN = {"path": "train.jsonl", "split": "train"}
TEST = {"path": "test.jsonl", "split": "test"}


def section(**fields: Any) -> PrepareSection:
    return PrepareSection.model_validate(
        {"task": "classification", "sources": [TRAIN, TEST]} | fields
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sources": []}, "at least 1 item"),
    ({"sources": [TEST]}, "no source has split: train"),
    ({"sources": [TRAIN, TRAIN | {"split": "test"}]}, "train.jsonl twice"),
    ({"sources": [TRAIN | {"split": "dev"}]}, "'train', 'validation' or 'test'"),
    ({"sources": [TRAIN | {"columns": {"txt": "body"}}]}, "Did you mean text"),
    ({"sources": [TRAIN | {"columns": {"messages": "m"}}]}, "has text, label, group"),
    ({"task": "preference"}, "'classification', 'chat' or 'completion'"),
    ({"test_fraction": 0.1}, "test rows come from a source and from test_fraction 0.1"),
    ({"validation_fraction": 1.0}, "less than 1"),
    ({"sources": [TRAIN], "validation_fraction": 0.5, "test_fraction": 0.5}, "nothing to train"),
    ({"limit": {"validation": 10}}, "no fraction gives validation rows"),
    ({"limit": {"train": 0}}, "greater than or equal to 1"),
    ({"task": "chat", "labels": ["a", "b"]}, "labels are of no use to task: chat"),
    ({"task": "completion", "system_prompt": "S"}, "system_prompt is of no use"),
    ({"labels": ["a", "b "]}, "white space"),
    ({"labels": ["a", "a"]}, "twice"),
    ({"labels": ["a"]}, "at least 2 items"),
    ({"system_prompt": ""}, "at least 1 character"),
    ({"max_quarantine_fraction": 1.5}, "less than or equal to 1"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**fields)


def test_columns_of_a_source_stand_before_group_by() -> None:
    made = section(
        group_by="author",
        sources=[TRAIN, TEST | {"columns": {"group": "writer", "text": "body"}}],
    )
    assert made.columns_of(made.sources[0]) == {"group": "author"}
    assert made.columns_of(made.sources[1]) == {"group": "writer", "text": "body"}


def test_key_fields_are_json() -> None:
    fields = section(limit={"train": 5}).key_fields()
    assert fields["sources"][0] == {"path": "train.jsonl", "split": "train", "columns": {}}
    assert fields["limit"] == {"train": 5}
    assert section().sources[0].path == Path("train.jsonl")
