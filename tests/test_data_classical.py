"""The classical model: what it reaches on real rows, its bounds, and rows it cannot learn from."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from luthier.data.classical import measure, within_budget
from luthier.data.summary import Classical

SECTIONS = Path(__file__).parent.parent / "data" / "package_sections"

Rows = tuple[list[str], list[str]]


def sections(split: str) -> Rows:
    lines = (SECTIONS / f"{split}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def measured(train: Rows, test: Rows, target: float | None = None, seed: int = 0) -> Classical:
    return measure(train, test, target=target, seed=seed, split="test")


def test_package_sections_are_learned_far_beyond_the_majority() -> None:
    found = measured(sections("train"), sections("test"), target=0.8)
    assert found.rows == 612
    assert found.accuracy > 0.81
    assert found.macro_f1 > 0.77
    assert found.majority == pytest.approx(107 / 612)
    assert found.reaches_target is True


def test_same_seed_gives_the_same_figures() -> None:
    texts, labels = sections("train")
    train, test = (texts[:800], labels[:800]), (texts[800:1000], labels[800:1000])
    assert measured(train, test) == measured(train, test)


@pytest.mark.parametrize(("target", "reached"), [(None, None), (0.4, True), (0.6, False)])
def test_target_is_compared_with_the_accuracy(target: float | None, reached: bool | None) -> None:
    train = (["red apple", "green pear"] * 10, ["a", "b"] * 10)
    test = (["red apple", "red apple", "green pear", "green pear"], ["a", "b", "b", "a"])
    found = measured(train, test, target)
    assert found.accuracy == 0.5
    assert found.reaches_target is reached


@pytest.mark.parametrize(
    ("train", "accuracy"),
    [
        ((["one", "two", "three"], ["b", "b", "b"]), 0.5),  # one label
        (([" ", "", "\n", " "], ["a", "b", "b", "a"]), 0.5),  # nothing to read; a is the first
        ((["!", "?", "!", "?"], ["a", "b", "a", "b"]), 1.0),  # symbols are words
        ((["木", "火", "木", "火"], ["a", "b", "a", "b"]), 0.5),
    ],
    ids=["one-label", "blank", "symbols", "unseen-script"],
)
def test_odd_train_rows_have_an_answer(train: Rows, accuracy: float) -> None:
    assert measured(train, (["!", "?"], ["a", "b"])).accuracy == accuracy


def test_label_that_train_lacks_is_an_error_of_the_model() -> None:
    train = (["red apple", "green pear"] * 10, ["a", "b"] * 10)
    found = measured(train, (["red apple", "blue plum"], ["a", "c"]))
    assert found.accuracy == 0.5
    assert found.macro_f1 < 0.6


def test_many_labels_take_the_model_of_one_pass() -> None:
    labels = [f"label {place % 160}" for place in range(1_600)]
    texts = [f"word{place % 160} {place % 7}" for place in range(1_600)]
    assert measured((texts, labels), (texts[:320], labels[:320])).accuracy == 1.0


def test_labels_by_chance_raise_no_warning_and_give_no_accuracy() -> None:
    texts, labels = sections("train")
    random.Random(0).shuffle(labels)
    found = measured((texts[:1000], labels[:1000]), (texts[1000:1500], labels[1000:1500]))
    assert found.accuracy < 0.25


def test_no_rows_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        measured((["text"], ["a"]), ([], []))


@pytest.mark.parametrize(
    ("texts", "most"),
    [
        (["x" * 20] * 1_000, 1_000),
        (["x"] * 60_000, 50_000),
        (["x" * 400] * 10_000, 3_750),
        (["x" * 100_000] * 3_000, 1_500),
    ],
    ids=["all", "rows", "characters", "long-texts"],
)
def test_large_data_is_sampled(texts: list[str], most: int) -> None:
    found = within_budget(texts, seed=3)
    assert len(found) == most
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, within_budget(texts, seed=3))
    if most < len(texts):
        assert not np.array_equal(found, within_budget(texts, seed=4))


def test_end_of_a_long_text_is_not_looked_at() -> None:
    same = "word " * 300
    train = ([same + "apple", same + "pear"] * 10, ["a", "b"] * 10)
    assert measured(train, ([same + "apple", same + "pear"], ["a", "b"])).accuracy == 0.5
