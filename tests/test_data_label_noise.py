"""Planted label errors are found in every seed, clean rows pass, doubts are told."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from luthier.data.cross_fit import CrossFit, cross_fit, why_not
from luthier.data.label_noise import MAX_LABEL_NOISE, LabelNoise, estimate, label_noise_gate
from luthier.data.label_shift import MAX_LABEL_SHIFT, LabelShift, label_shift_gate, shift
from luthier.gates import GATES

SECTIONS = Path(__file__).parent.parent / "data" / "package_sections"
SEEDS = [0, 1, 2]

Rows = tuple[list[str], list[str]]


@pytest.fixture(autouse=True)
def _known_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("label-noise", "label-shift"):
        monkeypatch.setitem(GATES, name, "F10")


@cache
def sections(split: str) -> Rows:
    lines = (SECTIONS / f"{split}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def train_rows(seed: int, count: int = 1_500) -> Rows:
    texts, labels = sections("train")
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[place] for place in chosen], [labels[place] for place in chosen]


def flipped(labels: list[str], share: float, seed: int) -> list[str]:
    """That share of the rows gets another label, each as likely."""
    names, draw = sorted(set(labels)), np.random.default_rng(seed)
    flipped = list(labels)
    for place in draw.choice(len(labels), round(share * len(labels)), replace=False):
        step = 1 + int(draw.integers(len(names) - 1))
        flipped[place] = names[(names.index(labels[place]) + step) % len(names)]
    return flipped


def renamed(labels: list[str], **names: str) -> list[str]:
    return [names.get(label, label) for label in labels]


def shuffled(labels: list[str], seed: int) -> list[str]:
    return [labels[place] for place in np.random.default_rng(seed).permutation(len(labels))]


def noise(texts: list[str], labels: list[str], seed: int = 0) -> LabelNoise:
    return estimate(cross_fit(texts, labels, seed))


@cache
def clean_fit(seed: int) -> CrossFit:
    return cross_fit(*train_rows(seed), seed)


def noise_status(found: LabelNoise) -> str:
    return label_noise_gate(found, MAX_LABEL_NOISE).status


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_labels_pass(seed: int) -> None:
    found = estimate(clean_fit(seed))
    assert noise_status(found) == "pass"
    assert found.at_least <= found.estimate < 0.06


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_flipped_labels_are_caught_and_counted(share: float, seed: int) -> None:
    texts, labels = train_rows(seed)
    found = noise(texts, flipped(labels, share, seed), seed)
    assert noise_status(found) == "fail"
    assert found.at_least <= share * 1.3
    assert share * 0.8 <= found.estimate <= share * 1.7


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_labels_are_caught_and_the_doubt_is_told(seed: int) -> None:
    texts, labels = train_rows(seed)
    gate = label_noise_gate(noise(texts, shuffled(labels, seed), seed), MAX_LABEL_NOISE)
    assert gate.status == "fail"
    assert "mixed up, or these texts do not tell them" in gate.detail


@pytest.mark.parametrize("seed", SEEDS)
def test_two_labels_suffice(seed: int) -> None:
    texts, labels = train_rows(seed)
    labels = ["games" if label == "games" else "other" for label in labels]
    assert noise_status(noise(texts, labels, seed)) == "pass"
    assert noise_status(noise(texts, flipped(labels, 0.15, seed), seed)) == "fail"


def test_suspects_are_the_planted_rows() -> None:
    texts, labels = train_rows(0)
    wrong = flipped(labels, 0.1, 0)
    found = noise(texts, wrong)
    right = [labels[suspect.row] != wrong[suspect.row] for suspect in found.suspects]
    assert len(right) == 50
    assert sum(right) >= 38
    assert all(suspect.given == wrong[suspect.row] for suspect in found.suspects)
    assert sum(s.likelier == labels[s.row] for s in found.suspects) >= 35
    assert all(suspect.probability > 0.5 for suspect in found.suspects)


def test_class_that_is_half_called_another_is_named() -> None:
    texts, labels = train_rows(1)
    sounds = [place for place, label in enumerate(labels) if label == "sound"]
    for place in sounds[: len(sounds) * 2 // 5]:
        labels[place] = "fonts"
    worst = noise(texts, labels).pairs[0]
    assert (worst.given, worst.likelier) == ("fonts", "sound")
    assert worst.rows >= 5


def test_same_seed_gives_the_same_estimate() -> None:
    texts, labels = train_rows(2, 700)
    assert noise(texts, labels, 5) == noise(texts, labels, 5)


@pytest.mark.parametrize(
    ("texts", "labels", "reason"),
    [
        (["a"] * 300, ["x"] * 300, "no two labels"),
        (["a"] * 150, ["x", "y"] * 75, "150 rows are too few to judge 2 labels; it takes 200"),
        (["a"] * 300, [str(row % 10) for row in range(300)], "it takes 400"),
        ([" "] * 300, ["x", "y"] * 150, "blank"),
        (["a" * 1000] * 4_100, [str(row % 100) for row in range(4_100)], "1500 rows are too few"),
    ],
    ids=["one-label", "few-rows", "few-rows-a-label", "blank", "sample-too-small"],
)
def test_what_cannot_be_judged_is_left_with_a_reason(
    texts: list[str], labels: list[str], reason: str
) -> None:
    assert reason in (why_not(texts, labels, 0) or "")
    with pytest.raises(ValueError, match=reason):
        cross_fit(texts, labels, 0)


def test_label_with_one_row_is_no_error() -> None:
    texts, labels = train_rows(0, 700)
    labels[0] = "lonely"
    assert noise_status(noise(texts, labels)) == "pass"


def test_rows_of_a_sample_keep_their_positions() -> None:
    texts = [f"{'sun' if row % 2 else 'moon'} {'x' * 990}" for row in range(4_000)]
    labels = ["day" if row % 2 else "night" for row in range(4_000)]
    wrong = range(0, 4_000, 8)
    for row in wrong:
        labels[row] = "day"
    found = noise(texts, labels)
    assert found.rows < 4_000
    assert {suspect.row for suspect in found.suspects} <= set(wrong)


def compared(train: Rows, split: Rows, seed: int = 0) -> LabelShift:
    return shift(cross_fit(*train, seed), *split, seed)


def shift_status(found: LabelShift) -> str:
    return label_shift_gate(found, MAX_LABEL_SHIFT).status


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_splits_of_one_convention_pass(split: str, seed: int) -> None:
    assert shift_status(shift(clean_fit(seed), *sections(split), seed)) == "pass"


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_test_labels_are_caught(seed: int) -> None:
    texts, labels = sections("test")
    found = shift(clean_fit(seed), texts, shuffled(labels, seed), seed)
    assert shift_status(found) == "fail"
    assert found.excess > 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("first", "second"), [("net", "science"), ("games", "sound"), ("fonts", "graphics")]
)
def test_two_labels_swapped_in_test_are_caught(first: str, second: str, seed: int) -> None:
    texts, labels = sections("test")
    swapped = renamed(labels, **{first: second, second: first})
    found = shift(clean_fit(seed), texts, swapped, seed)
    assert shift_status(found) == "fail"
    assert found.answer in (first, second)


@pytest.mark.parametrize(
    ("label", "name", "seed"),
    [("sound", "games", 0), ("games", "sound", 1), ("sound", "games", 2)],
)
def test_class_called_by_another_name_in_train_is_caught(label: str, name: str, seed: int) -> None:
    texts, labels = train_rows(seed)
    found = compared((texts, renamed(labels, **{label: name})), sections("test"), seed)
    assert shift_status(found) == "fail"
    assert found.answer == name


def test_label_that_train_lacks_is_caught() -> None:
    texts, labels = sections("test")
    found = shift(clean_fit(0), texts, renamed(labels, games="Games"), 0)
    assert shift_status(found) == "fail"
    assert "the answer 'games'" in label_shift_gate(found, MAX_LABEL_SHIFT).detail


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_rows_are_not_judged_different(rows: int) -> None:
    texts, labels = sections("test")
    found = shift(clean_fit(0), texts[:rows], labels[:rows], 0)
    assert found.rows == rows
    assert shift_status(found) == "pass"


def test_wrong_train_labels_are_not_taken_for_a_shift() -> None:
    texts, labels = train_rows(0)
    found = compared((texts, flipped(labels, 0.2, 0)), sections("test"))
    assert shift_status(found) == "pass"
