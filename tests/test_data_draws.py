"""Limits, mixtures of sources, and the seeded draws that they and the splits are made by."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_cases import Line, any_lines, index_of, plain_draw, some_lines
from luthier.data import decisions
from luthier.data.draws import draws, proportional_shares, that_fit
from luthier.data.index import Fate, RowIndex
from luthier.data.rows import SPLITS, Split
from luthier.data.splits import limited, mixture
from luthier.errors import DataError

# --- limits and mixtures ---


def test_limit_keeps_classes_in_proportion() -> None:
    lines = some_lines(500)
    index = index_of(lines)
    assert limited(index, {"train": 50, "test": 10}, 7) == 450
    assert decisions.class_counts(index, [])["train"] == {"games": 30, "net": 10, "web": 10}
    assert decisions.left_out(index, faults=False) == {"limit": 450}


def test_limit_depends_on_the_seed_and_not_on_order() -> None:
    lines = some_lines(500)

    def kept(order: Sequence[Line], limit: int, seed: int) -> set[str]:
        index = index_of(order)
        limited(index, {"train": limit}, seed)
        return {line.text for line, is_kept in zip(order, index.kept, strict=True) if is_kept}

    assert kept(lines, 50, 7) == kept(lines[::-1], 50, 7)
    assert kept(lines, 50, 7) != kept(lines, 50, 8)
    assert len(kept(lines, 500, 7)) == 500


@settings(deadline=None)
@given(any_lines, st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_limit_agrees_with_plain_python(
    lines: list[Line], train: int, test: int, seed: int
) -> None:
    index = index_of(lines)
    decisions.duplicates(index)
    inside = {split: np.flatnonzero(index.inside(split)).tolist() for split in SPLITS}
    limits: dict[Split, int] = {"train": train, "test": test}
    left = limited(index, limits, seed)
    gone = set(np.flatnonzero(index.fate == Fate.LIMIT).tolist())
    assert len(gone) == left
    for split, rows in inside.items():
        classes = defaultdict(list)
        for i in sorted(rows, key=lambda i: plain_draw(lines[i].id, seed, f"limit {split}")):
            classes[str(lines[i].label)].append(i)
        names = sorted(classes)
        limit = min(limits.get(split, len(rows)), len(rows))
        shares = proportional_shares([len(classes[name]) for name in names], limit)
        stay = {i for name, s in zip(names, shares, strict=True) for i in classes[name][:s]}
        assert set(rows) - gone == stay


def sources(index: RowIndex) -> list[int]:
    """Train rows in use, by source."""
    return np.bincount(index.source[index.inside("train")], minlength=3).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ((300, 100, 50), (0.3, 0.1, 0.05), (300, 100, 50)),
        ((100, 100, 100), (0.5, 0.3, 0.2), (100, 60, 40)),
        ((10, 1000, 7), (1.0, 1.0, None), (10, 10, 7)),
        ((1000, 35, 20), (0.7, 0.2, 0.1), (122, 35, 17)),
        ((20, 10, 5), (None, None, None), (20, 10, 5)),
        ((20, 10, 5), (None, 3.0, None), (20, 10, 5)),
        ((300, 100, 0), (0.3, 0.1, None), (300, 100, 0)),
    ],
)
def test_mixture_is_in_proportion_and_as_large_as_can_be(
    sizes: tuple[int, ...], weights: tuple[float | None, ...], expected: tuple[int, ...]
) -> None:
    lines = [Line(f"{s} {i}", source=s) for s, size in enumerate(sizes) for i in range(size)]
    lines += [Line(f"test {i}", source=0, split="test") for i in range(9)]
    index = index_of(lines)
    left = mixture(index, weights, 7)
    assert sources(index) == list(expected)
    assert left == sum(sizes) - sum(expected)
    assert int(index.inside("test").sum()) == 9
    assert set(index.counts()) <= {Fate.KEPT, Fate.MIXTURE}


def test_mixture_chooses_by_seed_and_content() -> None:
    lines = [Line(f"{i}", source=i % 2) for i in range(100)]

    def kept(order: Sequence[Line], seed: int) -> set[str]:
        index = index_of(order)
        mixture(index, [1.0, 0.2], seed)
        return {line.text for line, is_kept in zip(order, index.kept, strict=True) if is_kept}

    assert len(kept(lines, 7)) == 60
    assert kept(lines, 7) == kept(lines[::-1], 7)
    assert kept(lines, 7) != kept(lines, 8)


@settings(deadline=None)
@given(any_lines, st.lists(st.integers(1, 9) | st.none(), min_size=3, max_size=3))
def test_no_larger_mixture_fits(lines: list[Line], weights: list[int | None]) -> None:
    index = index_of(lines)
    before = sources(index)
    weighed = {s: w for s, w in enumerate(weights) if w is not None}
    if any(not before[s] for s in weighed):
        with pytest.raises(DataError, match=r"has weight .* but none of its rows is left"):
            mixture(index, weights, 7)
        return
    mixture(index, weights, 7)
    after = sources(index)
    assert all(after[s] == before[s] for s in range(3) if s not in weighed)
    whole = sum(weighed.values())
    for s, w in weighed.items():
        assert after[s] <= before[s]
        largest = min(before[other] * whole / weight for other, weight in weighed.items())
        assert largest * w / whole - 1 < after[s] <= largest * w / whole + 1e-9
    assert not weighed or any(after[s] == before[s] for s in weighed)


# --- draws ---


def test_draws_are_splitmix64() -> None:
    """The first three numbers of Vigna's generator with state 0."""
    salt = int.from_bytes(sha256(b"7 test").digest()[:8], "big")
    states = [0, 0x9E3779B97F4A7C15, 2 * 0x9E3779B97F4A7C15 % 2**64]
    keys = np.array([state ^ salt for state in states], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(keys, 7, "test").tolist() == expected
    assert [plain_draw(int(key), 7, "test") for key in keys] == expected


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 60))
def test_units_go_in_while_they_fit(sizes: list[int], room: int) -> None:
    taken, left = [], room
    for unit, size in enumerate(sizes):
        if 0 < size <= left:
            taken.append(unit)
            left -= size
    order = np.arange(len(sizes))
    found = [int(u) for units in that_fit(order, np.array(sizes, np.int32), room) for u in units]
    assert [unit for unit in found if sizes[unit]] == taken


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), st.data())
def test_shares_sum_up_and_fit(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(sizes)))
    shares = proportional_shares(sizes, count)
    assert sum(shares) == count
    for share, size in zip(shares, sizes, strict=True):
        assert 0 <= share <= size
        assert abs(share - count * size / sum(sizes)) < 1
