"""Seeded choices: groups and texts stay together, shares are met, order does not matter."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_cases import Line, any_lines, index_of, plain_draw, some_lines, splits_of
from luthier.data import decisions
from luthier.data.draws import proportional_shares
from luthier.data.index import Fate, RowIndex
from luthier.data.rows import SPLITS, Split
from luthier.data.splits import SplitBy, cut, limited
from luthier.errors import DataError


def cut_lines(
    lines: Sequence[Line], fractions: Mapping[Split, float], seed: int, by: SplitBy = "auto"
) -> dict[Split, set[str]]:
    """The texts of each split."""
    index = index_of(lines)
    cut(index, fractions, seed, by)
    found: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for line, split in zip(lines, splits_of(index), strict=True):
        found[split].add(line.text)
    return found


def cut_or_refusal(
    index: RowIndex, fractions: Mapping[Split, float], seed: int, by: SplitBy
) -> dict[Split, int] | str:
    """What moved, or why nothing could."""
    try:
        return cut(index, fractions, seed, by)
    except DataError as error:
        return str(error)


def clean(lines: Sequence[Line]) -> RowIndex:
    index = index_of(lines)
    decisions.duplicates(index)
    decisions.leaks(index)
    return index


# --- plain Python that does the same, one row after another ---


def plain_units(lines: Sequence[Line]) -> list[list[int]]:
    units: list[list[int]] = []
    for i, line in enumerate(lines):
        names = {("text", line.text), ("group", line.group)}
        together = [
            unit
            for unit in units
            if any(
                ("text", lines[j].text) in names
                or (lines[j].group is not None and ("group", lines[j].group) in names)
                for j in unit
            )
        ]
        units = [unit for unit in units if unit not in together]
        units.append([j for unit in together for j in unit] + [i])
    return units


def plain_cut(
    lines: Sequence[Line], use: Sequence[int], fractions: Mapping[Split, float], seed: int
) -> dict[int, Split]:
    """Where the rows at `use`, all of train, go by the method auto."""
    units = [[use[i] for i in unit] for unit in plain_units([lines[i] for i in use])]
    went: dict[int, Split] = {}
    for into in ("test", "validation"):
        count = round(fractions[into] * len(use))
        draw = {id(u): plain_draw(min(lines[i].id for i in u), seed, into) for u in units}
        units.sort(key=lambda unit: draw[id(unit)])
        staying = {lines[i].label: id(unit) for unit in units for i in unit}  # the last of each
        strata = defaultdict(list)
        for unit in units:
            said = Counter(lines[i].label for i in unit)
            strata[min(said, key=lambda x: (-said[x], str(x)))].append(unit)
        names = sorted(strata, key=str)
        shares = proportional_shares([sum(map(len, strata[name])) for name in names], count)
        moved: list[list[int]] = []
        for name, share in zip(names, shares, strict=True):
            moved += plain_fit(
                [unit for unit in strata[name] if id(unit) not in staying.values()], share
            )
        rest = [u for u in units if u not in moved and id(u) not in staying.values()]
        moved += plain_fit(rest, count - sum(map(len, moved)))
        went.update({i: into for unit in moved for i in unit})
        units = [unit for unit in units if unit not in moved]
    return went


def plain_fit(units: Sequence[list[int]], room: int) -> list[list[int]]:
    taken = []
    for unit in units:
        if len(unit) <= room:
            taken.append(unit)
            room -= len(unit)
    return taken


# --- cut ---

fractions_of_train = st.floats(0, 0.49)
methods: tuple[SplitBy, ...] = ("auto", "random", "stratified")


@settings(deadline=None)
@given(any_lines, fractions_of_train, fractions_of_train, st.integers(0, 3))
def test_cut_agrees_with_plain_python(
    lines: list[Line], test: float, validation: float, seed: int
) -> None:
    index = clean(lines)
    before, use = splits_of(index), np.flatnonzero(index.inside("train")).tolist()
    went = plain_cut(lines, use, {"test": test, "validation": validation}, seed)
    moved = cut(index, {"test": test, "validation": validation}, seed)
    assert splits_of(index) == [went.get(i, split) for i, split in enumerate(before)]
    found = Counter(went.values())
    assert {split: count for split, count in moved.items() if count} == found


@settings(deadline=None)
@given(
    any_lines,
    fractions_of_train,
    fractions_of_train,
    st.integers(0, 3),
    st.sampled_from((*methods, "time")),
)
def test_cut_keeps_groups_whole_and_exceeds_no_share(
    lines: list[Line], test: float, validation: float, seed: int, by: SplitBy
) -> None:
    index = clean(lines)
    before, train = splits_of(index), index.inside("train")
    fractions: dict[Split, float] = {"test": test, "validation": validation}
    moved = cut_or_refusal(index, fractions, seed, by)
    if isinstance(moved, str):
        assert by == "time"
        assert "stay together" in moved
        return
    after = splits_of(index)
    assert all(a == b for a, b, was in zip(before, after, train, strict=True) if not was)
    of_text, of_group = defaultdict(set), defaultdict(set)
    for line, split, was in zip(lines, after, train, strict=True):
        if was:
            of_text[line.text].add(split)
            of_group[line.group or line.text].add(split)
    assert all(len(found) == 1 for found in [*of_text.values(), *of_group.values()])
    for split, fraction in fractions.items():
        assert moved.get(split, 0) <= round(fraction * train.sum())
    assert (index.fate == clean(lines).fate).all()


@pytest.mark.parametrize("by", methods)
def test_cut_gives_each_class_its_share(by: SplitBy) -> None:
    lines = some_lines(500)
    index = index_of(lines)
    assert cut(index, {"test": 0.2, "validation": 0.1}, 7, by) == {"test": 100, "validation": 50}
    found = Counter(zip(splits_of(index), (line.label for line in lines), strict=True))
    exact = {
        ("train", "games"): 210,
        ("train", "net"): 70,
        ("train", "web"): 70,
        ("test", "games"): 60,
        ("test", "net"): 20,
        ("test", "web"): 20,
        ("validation", "games"): 30,
        ("validation", "net"): 10,
        ("validation", "web"): 10,
    }
    assert (found == exact) is (by != "random")


@settings(deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=5),
    st.integers(5, 60),
    fractions_of_train,
    st.integers(0, 9),
)
def test_ungrouped_classes_are_less_than_a_row_off(
    sizes: list[int], unlabelled: int, fraction: float, seed: int
) -> None:
    lines = [Line(f"{c} {i}", f"c{c}") for c, size in enumerate(sizes) for i in range(size)]
    index = index_of(lines)
    count = round(fraction * len(lines))
    assert cut(index, {"test": fraction}, seed) == ({"test": count} if count else {})
    counts = decisions.class_counts(index, [])
    for c, size in enumerate(sizes):
        assert abs(counts["test"][f"c{c}"] - count * size / len(lines)) < 1
        assert counts["train"][f"c{c}"] >= 1
    plain = index_of([Line(f"{i}") for i in range(unlabelled)])
    assert cut(plain, {"test": fraction}, seed).get("test", 0) == round(fraction * unlabelled)


@pytest.mark.parametrize("by", ["auto", "group", "random", "time"])
def test_cut_with_groups_fills_its_share(by: SplitBy) -> None:
    lines = some_lines(500, group_size=5)
    assert len(cut_lines(lines, {"validation": 0.1}, 7, by)["validation"]) == 50
    assert len(cut_lines(lines, {"validation": 0.106}, 7, by)["validation"]) == 50


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), fractions_of_train, st.integers(0, 9))
def test_a_share_is_missed_by_less_than_one_group(
    sizes: list[int], fraction: float, seed: int
) -> None:
    lines = [Line(f"{g} {i}", group=f"g{g}") for g, size in enumerate(sizes) for i in range(size)]
    count = round(fraction * len(lines))
    moved = cut(index_of(lines), {"test": fraction}, seed).get("test", 0)
    assert count - max(sizes) < moved <= count


def test_cut_never_takes_the_last_train_row_of_a_class() -> None:
    """A label that only test has cannot be learned, and the gate label-hygiene would fail."""
    lines = some_lines(100) + [Line(f"rare {i}", f"rare {i}") for i in range(100)]
    index = index_of(lines)
    assert cut(index, {"test": 0.2, "validation": 0.1}, 7) == {"test": 40, "validation": 20}
    assert all(decisions.class_counts(index, [])["train"].values())


def test_a_group_that_fits_nowhere_stays_in_train() -> None:
    lines = [Line(f"big {i}", group="big") for i in range(50)]
    lines += [Line(f"small {i}") for i in range(50)]
    for seed in range(5):
        found = cut_lines(lines, {"test": 0.2}, seed)
        assert len(found["test"]) == 20
        assert {line.text for line in lines[:50]} <= found["train"]


def test_a_chain_of_groups_and_texts_goes_together() -> None:
    chain = [Line("1", "x", group="a"), Line("1", "y", group="b"), Line("2", "x", group="b")]
    chain += [Line("2", "y", group="c"), Line("3", "x", group="c"), Line("3", "z")]
    lines = [*chain, *(Line(f"alone {i}", "xyz"[i % 3]) for i in range(30))]
    fates = set()
    for seed in range(30):
        index = index_of(lines)
        cut(index, {"test": 0.4}, seed)
        together = set(splits_of(index)[: len(chain)])
        assert len(together) == 1
        fates |= together
    assert fates == {"train", "test"}


def test_choice_is_made_by_seed_and_content_not_by_order() -> None:
    lines = some_lines(300)
    chosen = cut_lines(lines, {"test": 0.1}, 7)["test"]
    assert cut_lines(lines[::-1], {"test": 0.1}, 7)["test"] == chosen
    assert cut_lines(lines, {"test": 0.1}, 8)["test"] != chosen
    assert cut_lines(lines, {"validation": 0.1}, 7)["validation"] != chosen
    more = cut_lines(some_lines(310), {"test": 0.1}, 7)["test"]
    assert len(more & chosen) >= 25


def test_of_classes_with_equal_claims_the_first_by_name_comes_first() -> None:
    """Not the one that was read first: its code is lower only in this order of the rows."""
    lines = [Line(f"{label} {i}", label) for label in "zyx" for i in range(4)]
    for order in (lines, lines[::-1]):
        index = index_of(order)
        cut(index, {"test": 5 / 12}, 7)
        assert decisions.class_counts(index, [])["test"] == {"x": 2, "y": 2, "z": 1}
        limited(index, {"train": 5, "test": 4}, 7)
        assert decisions.class_counts(index, [])["test"] == {"x": 2, "y": 1, "z": 1}


@settings(deadline=None)
@given(any_lines, st.randoms(use_true_random=False), st.sampled_from((*methods, "time")))
def test_cut_does_not_depend_on_order_or_other_splits(
    lines: list[Line], rng: random.Random, by: SplitBy
) -> None:
    fractions: dict[Split, float] = {"test": 0.3, "validation": 0.2}
    train = [line for line in lines if line.split == "train"]
    others = [Line(f"other {i}", "other", "test", time=99.0) for i in range(len(lines))]
    shuffled = rng.sample([*train, *others], len(train) + len(others))
    index, alone = index_of(shuffled), index_of(train)
    moved = cut_or_refusal(index, fractions, 7, by)
    assert moved == cut_or_refusal(alone, fractions, 7, by)
    found = {line.text: split for line, split in zip(train, splits_of(alone), strict=True)}
    found |= {line.text: "test" for line in others}
    if isinstance(moved, str):
        return  # what moved before the refusal is nobody's
    for line, split in zip(shuffled, splits_of(index), strict=True):
        assert split == found[line.text]


def test_random_looks_at_no_labels() -> None:
    lines = some_lines(300)
    other_labels = [Line(x.text, "net" if x.label == "games" else "games") for x in lines]
    texts = [set[str]() for _ in range(2)]
    for found, kind in zip(texts, (lines, other_labels), strict=True):
        index = index_of(kind)
        index.id_key[:] = index.prompt_key  # the draw is made of the whole row
        cut(index, {"test": 0.2}, 7, "random")
        found |= {
            x.text for x, split in zip(kind, splits_of(index), strict=True) if split != "train"
        }
    assert texts[0] == texts[1]


def test_rows_that_left_are_not_cut() -> None:
    index = index_of(some_lines(20))
    index.leave(np.arange(10), Fate.DUPLICATE)
    assert cut(index, {"test": 0.5}, 7) == {"test": 5}
    assert set(splits_of(index)[:10]) == {"train"}


@pytest.mark.parametrize("fractions", [{}, {"test": 0.0}, {"test": 0.001}])
def test_nothing_to_cut_is_nothing_cut(fractions: dict[Split, float]) -> None:
    assert cut(index_of(some_lines(20)), fractions, 7, "stratified") == {}
    assert cut(index_of([]), {"test": 0.5}, 7, "time") == {}


# --- by time ---


def test_the_latest_rows_are_test_and_those_before_them_validation() -> None:
    lines = some_lines(100)
    random.Random(7).shuffle(lines)
    found = cut_lines(lines, {"validation": 0.2, "test": 0.1}, 7, "time")
    assert found["test"] == {f"text {i}" for i in range(90, 100)}
    assert found["validation"] == {f"text {i}" for i in range(70, 90)}


def test_rows_of_one_time_stay_together() -> None:
    lines = [Line(f"{i}", time=float(i // 4)) for i in range(40)]
    found = cut_lines(lines, {"test": 0.15, "validation": 0.2}, 7, "time")
    assert found["test"] == {"36", "37", "38", "39"}
    assert found["validation"] == {str(i) for i in range(28, 36)}


def test_a_group_is_as_late_as_its_latest_row() -> None:
    lines = [Line(f"{i}", group="g" if i in (0, 9) else None, time=float(i)) for i in range(10)]
    assert cut_lines(lines, {"test": 0.3}, 7, "time")["test"] == {"0", "9", "8"}


@settings(deadline=None)
@given(any_lines, fractions_of_train)
def test_train_is_older_than_what_went(lines: list[Line], fraction: float) -> None:
    train = [line for line in lines if line.split == "train"]
    index = index_of(train)
    try:
        cut(index, {"test": fraction}, 7, "time")
    except DataError:
        return
    split = splits_of(index)
    latest = [
        max(train[i].time for i in unit) for unit in plain_units(train) if split[unit[0]] == "test"
    ]
    assert all(
        line.time < min(latest, default=99)
        for line, where in zip(train, split, strict=True)
        if where == "train"
    )


def test_every_row_may_be_late_enough() -> None:
    index = index_of([Line("a", time=1.0), Line("b", time=1.0)])
    assert cut(index, {"test": 0.9}, 7, "time") == {"test": 2}


@pytest.mark.parametrize(
    ("lines", "by", "message"),
    [
        (
            [Line("a", time=1.0), Line("b"), Line("c"), Line("d", split="test")],
            "time",
            "prepare.split_by: time, but 2 of 3 train rows have no time. "
            "Name their column by prepare.time_by",
        ),
        (
            [Line("a", group="g"), Line("b")],
            "group",
            "prepare.split_by: group, but 1 of 2 train rows have no group. "
            "Name their column by prepare.group_by",
        ),
        (
            [Line("a", "x"), Line("b")],
            "stratified",
            "prepare.split_by: stratified, but 1 of 2 train rows have no label.",
        ),
        (
            [*(Line(f"{i}", time=5.0) for i in range(6)), Line("old", time=1.0)],
            "time",
            "prepare.test_fraction asks for the latest 4 train rows, but the latest 6 stay",
        ),
    ],
)
def test_rows_that_cannot_be_cut_are_counted(lines: list[Line], by: SplitBy, message: str) -> None:
    index = index_of(lines)
    with pytest.raises(DataError) as error:
        cut(index, {"test": 0.6}, 7, by)
    assert message in str(error.value)
