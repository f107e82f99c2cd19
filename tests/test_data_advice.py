"""Each piece of advice: the data set that needs it, and the sound one that gets none."""

from collections.abc import Mapping
from typing import Any

import pytest

from luthier.data.advice import advice
from luthier.data.rows import Split, Task
from luthier.data.summary import (
    Classical,
    DatasetCounts,
    DatasetInfo,
    NearCounts,
    PiiCounts,
    SplitCounts,
    Spread,
)


def spread(total: int) -> Spread:
    return Spread(min=1, mean=1.0, p50=1, p95=1, max=1, total=total, histogram=[0, 1])


def split_counts(
    classes: Mapping[str, int], learned: int = 10, tokens: int = 100, majority: float | None = 0.5
) -> SplitCounts:
    return SplitCounts(
        rows=sum(classes.values()),
        classes=dict(classes),
        majority_class_share=majority,
        tokens=spread(tokens),
        supervised_tokens=spread(learned),
    )


def dataset(
    task: Task = "classification",
    splits: Mapping[Split, int] | None = None,
    train: SplitCounts | None = None,
    test: SplitCounts | None = None,
    **parts: Any,
) -> DatasetInfo:
    """Sound: 6,000 train rows in two equal classes, 2,000 test rows, nothing found."""
    sizes = splits or {"train": 6_000, "validation": 500, "test": 2_000}
    counts = {"read": 8_500, "generated": 0, "kept": 8_500, "quarantined": {}, "dropped": {}}
    counts |= {name: parts.pop(name) for name in ("quarantined", "dropped") if name in parts}
    return DatasetInfo(
        task=task,
        labels=["a", "b"],
        system_prompt=None,
        splits=dict(sizes),
        stop_token_ids=[1],
        max_length_tokens=100,
        counts=DatasetCounts(
            **counts,
            changed={},
            splits={
                "train": train or split_counts({"a": 3_000, "b": 3_000}),
                "test": test or split_counts({"a": 1_000, "b": 1_000}),
            },
        ),
        **parts,
    )


def near(found: int) -> NearCounts:
    return NearCounts(
        jaccard=0.8,
        rows=8_500,
        near_duplicates=found,
        leaks=0,
        ngram_leaks=0,
        contaminated={},
        examples=[],
    )


def classical(reaches: bool | None) -> Classical:
    return Classical(
        split="test", rows=612, accuracy=0.83, macro_f1=0.8, majority=0.2, reaches_target=reaches
    )


def by_id(info: DatasetInfo, target: float | None = None) -> dict[str, str]:
    return {found.id: f"{found.level}: {found.text}" for found in advice(info, target)}


def sizes(train: int = 6_000, validation: int = 500, test: int = 2_000) -> dict[Split, int]:
    return {"train": train, "validation": validation, "test": test}


def test_sound_data_gets_the_majority_and_no_warning() -> None:
    assert by_id(dataset()) == {
        "majority": "info: Always saying the largest class is right on 50.0% of the rows. "
        "Read every accuracy against this."
    }


@pytest.mark.parametrize(
    ("kind", "level", "parts", "shown"),
    [
        (
            "few-rows",
            "warn",
            {"splits": sizes(train=999)},
            ["999 train rows", "Rule of thumb", "1,000 rows at least", "luthier baseline"],
        ),
        ("few-rows", "info", {"splits": sizes(train=1_000)}, ["1,000 train rows", "5,000"]),
        ("no-test", "warn", {"splits": sizes(test=0)}, ["No test rows", "prepare.test_fraction"]),
        (
            "no-validation",
            "warn",
            {"splits": {"train": 6_000, "test": 2_000}},
            ["No validation rows", "prepare.validation_fraction"],
        ),
        (
            "test-too-small",
            "warn",
            {"splits": sizes(test=99)},
            ["99 test rows", "41% to 60%", "cannot tell", "100 at least"],
        ),
        ("test-small", "info", {"splits": sizes(test=300)}, ["300 test rows", "44% to 56%"]),
        (
            "imbalance",
            "warn",
            {"train": split_counts({"a": 5_500, "b": 500})},
            ["'a' has 11 times the train rows of 'b' (5,500 and 500)", "macro F1"],
        ),
        (
            "small-classes",
            "warn",
            {"train": split_counts({"a": 100, "b": 19, "c": 0})},
            ["2 of 3 classes have fewer than 20", "'b' 19, 'c' 0."],
        ),
        (
            "little-learned",
            "info",
            {"train": split_counts({"a": 30, "b": 30}, learned=1, tokens=100)},
            ["1.0% of the train tokens", "prepare.system_prompt"],
        ),
        (
            "nearly-all-learned",
            "warn",
            {"train": split_counts({"a": 30, "b": 30}, learned=96, tokens=100)},
            ["96.0% of the train tokens", "luthier inspect"],
        ),
        (
            "copies",
            "warn",
            {"dropped": {"duplicate": 400}, "near": near(100)},
            ["400 copies and 100 near copies among 8,500", "near_duplicates: drop"],
        ),
        (
            "copies",
            "warn",
            {"dropped": {"duplicate": 400, "near-duplicate": 100}, "near": near(100)},
            ["They were left out"],
        ),
        (
            "contradictions",
            "warn",
            {"quarantined": {"contradiction": 90}},
            ["90 of 8,500 records", "quarantine.jsonl"],
        ),
        (
            "label-noise",
            "warn",
            {"label_noise": {"estimate": 0.08, "at_least": 0.06}},
            ["About 8.0% of the train labels look wrong, surely 6.0%", "suspects"],
        ),
        (
            "pii",
            "warn",
            {"pii": PiiCounts(rows={"email": 3, "key": 0}, redacted=False, examples=[])},
            ["secrets: email in 3 rows.", "prepare.pii.action: redact"],
        ),
        ("classical-baseline", "info", {"classical": classical(None)}, ["83.0% of 612 test rows"]),
        ("classical-baseline", "info", {"classical": classical(False)}, ["clearly better"]),
        (
            "classical-reaches-target",
            "warn",
            {"classical": classical(True)},
            ["reaches the target", "without a GPU", "baseline.target.value"],
        ),
    ],
)
def test_advice_has_the_figure_the_rule_and_the_next_step(
    kind: str, level: str, parts: dict[str, Any], shown: list[str]
) -> None:
    found = by_id(dataset(**parts))
    assert set(found) == {kind, "majority"}
    assert found[kind].startswith(f"{level}: ")
    for words in shown:
        assert words in found[kind]


@pytest.mark.parametrize(
    "parts",
    [
        {"splits": sizes(train=5_000)},
        {"splits": sizes(test=400)},
        {"train": split_counts({"a": 5_000, "b": 500})},
        {"train": split_counts({"a": 20, "b": 20})},
        {"train": split_counts({"a": 30, "b": 30}, learned=2)},
        {"train": split_counts({"a": 30, "b": 30}, learned=95)},
        {"dropped": {"duplicate": 425}, "near": near(0)},
        {"quarantined": {"contradiction": 85}},
        {"label_noise": {"estimate": 0.05, "at_least": 0.03}},
        {"label_noise": {"skipped": "too few rows"}},
        {"pii": PiiCounts(rows={"email": 3}, redacted=True, examples=[])},
        {"pii": PiiCounts(rows={"email": 0}, redacted=False, examples=[])},
    ],
)
def test_just_within_the_rule_is_no_news(parts: dict[str, Any]) -> None:
    assert set(by_id(dataset(**parts))) == {"majority"}


@pytest.mark.parametrize(
    ("task", "rows", "level"),
    [
        ("extraction", 999, "warn"),
        ("extraction", 5_000, None),
        ("chat", 499, "warn"),
        ("chat", 9_999, "info"),
        ("completion", 10_000, None),
        ("grounded", 499, "warn"),
        ("text", 10, None),
        ("preference", 10, None),
    ],
)
def test_rows_needed_depend_on_the_task(task: Task, rows: int, level: str | None) -> None:
    counts = split_counts({}, majority=None)
    info = dataset(task=task, splits=sizes(train=rows), train=counts, test=counts)
    found = by_id(info)
    assert set(found) == ({"few-rows"} if level else set())
    if level:
        assert found["few-rows"].startswith(level)


@pytest.mark.parametrize("task", ["text", "preference"])
def test_learned_share_means_nothing_where_all_is_learned(task: Task) -> None:
    counts = split_counts({}, learned=100, majority=None)
    assert by_id(dataset(task=task, train=counts, test=counts)) == {}


def test_majority_that_reaches_the_target_is_a_warning() -> None:
    info = dataset(test=split_counts({"a": 9, "b": 1}, majority=0.9))
    assert by_id(info, target=0.9)["majority"].startswith("warn: ")
    assert "the target of 90.0%" in by_id(info, target=0.9)["majority"]
    assert by_id(info, target=0.91)["majority"].startswith("info: ")


def test_width_of_the_interval_is_that_at_the_target() -> None:
    info = dataset(splits=sizes(test=300))
    assert "test-small" in by_id(info, target=0.6)
    assert "test-small" not in by_id(info, target=0.95)


def test_data_without_any_rows_is_no_error() -> None:
    nothing = split_counts({}, learned=0, tokens=0, majority=None)
    info = dataset(splits={"train": 0}, train=nothing, test=nothing)
    empty = info.counts.model_copy(update={"read": 0, "kept": 0, "splits": {}})
    found = by_id(info.model_copy(update={"counts": empty}))
    assert set(found) == {"few-rows", "no-test", "no-validation"}
