"""Cleaning and splitting: counts add up, groups and texts stay together, a seed decides."""

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.cleaning import (
    known_labels,
    shared_identities,
    without_contradictions,
    without_duplicates,
    without_leaks,
)
from luthier.data.formats import ROW_FORMATS, to_row
from luthier.data.rows import SPLITS, Ledger, RawRow, Row, Split
from luthier.data.splits import cut, limited, proportional_shares


def make(
    text: str, label: str, split: Split = "train", group: str | None = None, line: int = 1
) -> Row:
    values = {"text": text, "label": label} | ({"group": group} if group else {})
    columns = {"group": "group"} if group else {}
    raw = RawRow("a.jsonl", line, values, text)
    return to_row(raw, ROW_FORMATS["classification"], columns, split, None)


def texts(rows: list[Row], split: Split) -> list[str]:
    return [row.messages[0]["content"] for row in rows if row.split == split]


def some_rows(count: int, group_size: int = 1) -> list[Row]:
    labels = ["games", "games", "games", "net", "web"]
    return [
        make(f"text {i}", labels[i % 5], group=f"g{i // group_size}", line=i + 1)
        for i in range(count)
    ]


row_lists = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from("xyz"),
        st.sampled_from(SPLITS),
        st.sampled_from([None, "a", "b", "c", "d", "e"]),
    ),
    max_size=60,
).map(
    lambda found: [
        make(f"t{t}", lab, split, g, i + 1) for i, (t, lab, split, g) in enumerate(found)
    ]
)


def test_unknown_label_is_quarantined_with_a_hint() -> None:
    ledger = Ledger()
    kept = known_labels([make("a", "games"), make("b", "gmaes")], ["games", "net"], ledger)
    assert [row.label for row in kept] == ["games"]
    assert ledger.quarantined[0].reason == (
        "label-unknown: 'gmaes' is not one of 2 labels; did you mean 'games'?"
    )


def test_contradictions_leave_together_and_only_within_their_split() -> None:
    ledger = Ledger()
    rows = [make("a", "x"), make("b", "x"), make("a", "y"), make("a", "x", "test")]
    kept = without_contradictions(rows, ledger)
    assert texts(kept, "train") == ["b"]
    assert texts(kept, "test") == ["a"]
    assert ledger.quarantined_by_kind == {"contradiction": 2}
    assert "'x', 'y'" in ledger.quarantined[0].reason


def test_first_duplicate_stays() -> None:
    ledger = Ledger()
    rows = [make("a", "x", line=1), make("a", "x", line=2), make("a", "x", "test", line=3)]
    kept = without_duplicates(rows, ledger)
    assert [row.source_line for row in kept] == [1, 3]
    assert ledger.dropped == {"duplicate": 1}


def test_leaks_leave_train_and_never_test() -> None:
    ledger = Ledger()
    rows = [
        make("a", "x"),
        make("b", "x"),
        make("c", "x", group="g"),
        make("d", "x"),
        make("a", "y", "test"),
        make("e", "x", "test", group="g"),
        make("b", "x", "validation"),
        make("a", "y", "validation"),
    ]
    assert shared_identities(rows) == {"text": 2, "group": 1}
    kept = without_leaks(rows, ledger)
    assert texts(kept, "train") == ["d"]
    assert texts(kept, "validation") == ["b"]
    assert texts(kept, "test") == ["a", "e"]
    assert ledger.dropped == {"leak-text": 3, "leak-group": 1}
    assert shared_identities(kept) == {"text": 0, "group": 0}


@settings(deadline=None)
@given(row_lists)
def test_cleaning_balances_and_leaves_no_leak(rows: list[Row]) -> None:
    ledger = Ledger()
    ledger.read = len(rows)
    kept = known_labels(rows, ["x", "y"], ledger)
    kept = without_duplicates(without_contradictions(kept, ledger), ledger)
    tests_before = texts(kept, "test")
    kept = without_leaks(kept, ledger)
    ledger.assert_balanced(len(kept))
    assert shared_identities(kept) == {"text": 0, "group": 0}
    assert texts(kept, "test") == tests_before
    assert without_leaks(kept, ledger) == kept


@settings(deadline=None)
@given(row_lists, st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 3))
def test_cut_keeps_every_row_and_groups_whole(
    rows: list[Row], test: float, validation: float, seed: int
) -> None:
    rows = without_leaks(without_duplicates(rows, Ledger()), Ledger())
    fractions: dict[Split, float] = {"test": test, "validation": validation}
    before = Counter(row.split for row in rows)
    done = cut(rows, fractions, seed)
    assert [row.id for row in done] == [row.id for row in rows]
    assert all(a.split == b.split for a, b in zip(rows, done, strict=True) if a.split != "train")
    splits_of_text: dict[str, set[Split]] = defaultdict(set)
    splits_of_group: dict[str, set[Split]] = defaultdict(set)
    for old, new in zip(rows, done, strict=True):
        if old.split == "train":
            splits_of_text[new.prompt_key].add(new.split)
            splits_of_group[new.group or new.prompt_key].add(new.split)
    assert all(len(found) == 1 for found in [*splits_of_text.values(), *splits_of_group.values()])
    after = Counter(row.split for row in done)
    for split, fraction in fractions.items():
        assert after[split] - before[split] <= round(fraction * before["train"])
    assert cut(rows, fractions, seed) == done


def test_cut_gives_each_class_its_share() -> None:
    done = cut(some_rows(500), {"test": 0.2, "validation": 0.1}, 7)
    assert Counter((row.split, row.label) for row in done) == {
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


def test_cut_with_groups_comes_close_to_its_share() -> None:
    done = cut(some_rows(500, group_size=5), {"validation": 0.1}, 7)
    assert 45 <= len(texts(done, "validation")) <= 50


def test_choice_is_made_by_seed_and_content_not_by_order() -> None:
    rows = some_rows(300)
    chosen = set(texts(cut(rows, {"test": 0.1}, 7), "test"))
    assert set(texts(cut(rows[::-1], {"test": 0.1}, 7), "test")) == chosen
    assert set(texts(cut(rows, {"test": 0.1}, 8), "test")) != chosen


def test_limit_keeps_classes_in_proportion_and_order() -> None:
    ledger = Ledger()
    rows = some_rows(500)
    kept = limited(rows, {"train": 50, "test": 10}, 7, ledger)
    assert Counter(row.label for row in kept) == {"games": 30, "net": 10, "web": 10}
    assert [row.source_line for row in kept] == sorted(row.source_line for row in kept)
    assert ledger.dropped == {"limit": 450}
    assert limited(rows, {"train": 50}, 7, Ledger()) == kept
    assert limited(rows, {"train": 50}, 8, Ledger()) != kept
    assert limited(rows, {"train": 500}, 7, Ledger()) == rows


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 40), min_size=1), st.data())
def test_shares_sum_up_and_fit(sizes: dict[str | None, int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(sizes.values())))
    shares = proportional_shares(sizes, count)
    assert sum(shares.values()) == count
    assert all(0 <= shares[label] <= sizes[label] for label in sizes)
    assert all(abs(shares[x] - count * sizes[x] / sum(sizes.values())) < 1 for x in sizes)
