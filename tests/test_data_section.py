"""The prepare section: what contradicts itself is refused before any row is read."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.data.section import PrepareSection, Source

TRAIN = {"path": "train.jsonl", "split": "train"}
TEST = {"path": "test.jsonl", "split": "test"}
HUB = {"path": "hub:a/b", "split": "train", "revision": "0" * 40}


def section(**fields: Any) -> PrepareSection:
    return PrepareSection.model_validate(
        {"task": "classification", "sources": [TRAIN, TEST]} | fields
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sources": []}, "at least 1 item"),
    ({"sources": [TEST]}, "no source has split: train"),
    ({"sources": [TRAIN, TRAIN | {"split": "test"}]}, "train.jsonl twice"),
    ({"sources": [TRAIN | {"split": "dev"}]}, "'train', 'validation' or 'test'"),
    ({"sources": [TRAIN | {"path": ""}]}, "at least 1 character"),
    ({"sources": [TRAIN | {"columns": {"txt": "body"}}]}, "Did you mean text"),
    ({"sources": [TRAIN | {"columns": {"messages": "m"}}]}, "has text, label, group, time"),
    ({"sources": [TRAIN | {"columns": {"text": ""}}]}, "at least 1 character"),
    (
        {"sources": [TRAIN | {"format": "clasification"}]},
        "format clasification is unknown; .* Did you mean classification",
    ),
    ({"sources": [TRAIN | {"format": "messages"}]}, "task: classification has classification"),
    (
        {"task": "chat", "sources": [TRAIN | {"format": "alpaca", "columns": {"messages": "m"}}]},
        "columns.messages is unknown; task: chat has instruction, output, input, system",
    ),
    ({"sources": [TRAIN | {"weight": 0}]}, "greater than 0"),
    (
        {"sources": [TRAIN | {"weight": 1}, TRAIN | {"path": "more.jsonl"}]},
        "give every train source a weight, or none",
    ),
    ({"sources": [HUB | {"revision": None}]}, "hub:a/b: needs revision"),
    ({"sources": [TRAIN | {"revision": "0" * 40}]}, "revision and files are for hub:OWNER/NAME"),
    ({"sources": [TRAIN | {"files": ["*.parquet"]}]}, "revision and files are for hub:"),
    ({"task": "regression"}, "'classification', 'extraction', 'chat'"),
    ({"test_fraction": 0.1}, "test rows come from a source and from test_fraction 0.1"),
    ({"validation_fraction": 1.0}, "less than 1"),
    ({"validation_fraction": -0.1}, "greater than or equal to 0"),
    ({"sources": [TRAIN], "validation_fraction": 0.5, "test_fraction": 0.5}, "nothing to train"),
    ({"limit": {"validation": 10}}, "no fraction gives validation rows"),
    ({"limit": {"train": 0}}, "greater than or equal to 1"),
    ({"limit": {"dev": 5}}, "'train', 'validation' or 'test'"),
    ({"split_by": "group"}, "split_by: group needs group_by"),
    ({"split_by": "time"}, "split_by: time needs time_by"),
    ({"split_by": "label"}, "'auto', 'random', 'stratified', 'group' or 'time'"),
    ({"group_by": ""}, "at least 1 character"),
    ({"task": "chat", "labels": ["a", "b"]}, "labels are of no use to task: chat"),
    ({"task": "completion", "system_prompt": "S"}, "system_prompt is of no use"),
    ({"task": "text", "system_prompt": "S"}, "task: text, which is plain text"),
    ({"task": "preference", "replay": {"path": "r.jsonl"}}, "do not fit task: preference"),
    ({"task": "text", "replay": {"path": "r.jsonl"}}, "do not fit task: text"),
    ({"replay": {"fraction": 0.1}}, "give either path .* or prompts"),
    ({"replay": {"path": "a", "prompts": "b"}}, "give either path .* or prompts"),
    ({"replay": {"path": "a", "fraction": 0.6}}, "less than or equal to 0.5"),
    ({"grounded": {"distractors": 3}}, "with task: grounded"),
    (
        {
            "task": "grounded",
            "sources": [TRAIN],
            "grounded": {"distractors": 3},
            "test_fraction": 0.1,
        },
        "give every split by a source",
    ),
    ({"grounded": {"template": "{question}"}}, "must say {documents} once, not 0x"),
    ({"classification": {"template": "{text}{text}"}}, "must say {text} once, not 2x"),
    ({"classification": {"label_descriptions": {"x": ""}}}, "at least 1 character"),
    ({"labels": ["a", "b "]}, "white space"),
    ({"labels": ["a", "a"]}, "twice"),
    ({"labels": ["a"]}, "at least 2 items"),
    ({"system_prompt": ""}, "at least 1 character"),
    ({"system_prompt": "One of {labels}"}, "says {labels}, so `labels` must list them"),
    ({"max_quarantine_fraction": 1.5}, "less than or equal to 1"),
    ({"max_label_noise": -0.1}, "greater than or equal to 0"),
    ({"target_accuracy": 0}, "greater than 0"),
    ({"max_length_tokens": 7}, "greater than or equal to 8"),
    ({"on_overlong": "cut"}, "'fail', 'drop' or 'truncate'"),
    ({"on_leak": "warn"}, "'drop' or 'fail'"),
    ({"loss_on": "replies"}, "'all_assistant_turns', 'last_turn' or 'full_text'"),
    ({"workers": -1}, "greater than or equal to 0"),
    ({"near": {"jaccard": 0.4}}, "greater than or equal to 0.5"),
    ({"near": {"ngram_words": 7}}, "greater than or equal to 8"),
    ({"filters": {"min_characters": 9, "max_characters": 8}}, "is more than max_characters"),
    ({"filters": {"reject_pattern": "("}}, "is no regular expression"),
    ({"filters": {"languages": ["german"]}}, "is no language code"),
    ({"normalise": {"unicode": "nfkc"}}, "'keep' or 'nfc'"),
    ({"pii": {"phone_region": "us"}}, "is no country code in capitals"),
    ({"contamination": [{"file": "a"}]}, "path"),
    ({"dedupe": True}, "Extra inputs|dedupe"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**fields)


def test_benchmarks_need_the_search() -> None:
    with pytest.raises(ValidationError, match="contamination"):
        section(near={"enabled": False}, contamination=[{"path": "bench.txt"}])


RIGHT: list[dict[str, Any]] = [
    {},
    {"sources": [TRAIN, HUB]},
    {"sources": [TRAIN | {"weight": 1}, TEST]},
    {"sources": [TRAIN], "validation_fraction": 0.4, "test_fraction": 0.5},
    {"sources": [TRAIN], "test_fraction": 0.1, "limit": {"test": 5}},
    {"split_by": "group", "group_by": "author"},
    {"split_by": "time", "time_by": "at"},
    {"labels": ["a", "b"], "system_prompt": "One of {labels}"},
    {"task": "grounded", "grounded": {"distractors": 3}},
    {"task": "grounded", "sources": [TRAIN], "test_fraction": 0.1},
    {"task": "preference"},
    {"task": "chat", "replay": {"prompts": "p.jsonl"}},
    {"task": "chat", "sources": [TRAIN | {"format": "alpaca", "columns": {"input": "extra"}}]},
    {"task": "chat", "sources": [TRAIN | {"columns": {"conversations": "c", "time": "t"}}]},
]


@pytest.mark.parametrize("fields", RIGHT)
def test_what_fits_together_is_taken(fields: dict[str, Any]) -> None:
    made = section(**fields)
    assert made == section(**json.loads(made.model_dump_json()))


def test_columns_of_a_source_stand_before_those_of_all() -> None:
    made = section(
        group_by="author",
        time_by="at",
        sources=[TRAIN, TEST | {"columns": {"group": "writer", "text": "body"}}],
    )
    assert made.columns_of(made.sources[0]) == {"group": "author", "time": "at"}
    assert made.columns_of(made.sources[1]) == {"group": "writer", "time": "at", "text": "body"}


def test_splits_come_from_sources_and_fractions() -> None:
    made = section(sources=[TRAIN], test_fraction=0.2)
    assert made.given_splits == {"train"}
    assert made.fractions == {"test": 0.2}
    assert section().fractions == {}


def test_key_fields_are_json_and_know_no_processes() -> None:
    fields = section(limit={"train": 5}, workers=3).key_fields()
    assert fields == json.loads(json.dumps(fields))
    assert fields["sources"][0] == Source.model_validate(TRAIN).model_dump(mode="json")
    assert fields["limit"] == {"train": 5}
    assert fields == section(limit={"train": 5}, workers=1).key_fields()
    assert fields != section(limit={"train": 6}).key_fields()
