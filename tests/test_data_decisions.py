"""Decisions on the index: each rule catches what it must and no more, and the books balance."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_cases import Line, any_lines, index_of, key
from luthier.data import decisions
from luthier.data.index import NO_LABEL, Fate, RowIndex
from luthier.data.rows import SPLITS, Split
from luthier.data.summary import DatasetCounts
from luthier.gates import GATES

Rule = Callable[[Sequence[Line], Sequence[bool]], list[bool]]


def kept(lines: Sequence[Line], index: RowIndex) -> list[Line]:
    return [line for line, fate in zip(lines, index.fate, strict=True) if fate == Fate.KEPT]


# --- labels ---


def test_unknown_label_leaves_and_is_told_with_a_hint() -> None:
    index = index_of([Line("a", "games"), Line("b", "gmaes"), Line("c", "net"), Line("d")])
    assert decisions.unknown_labels(index, ["games", "net"]) == 2
    assert index.fate.tolist() == [Fate.KEPT, Fate.LABEL_UNKNOWN, Fate.KEPT, Fate.LABEL_UNKNOWN]
    assert decisions.label_reason("gmaes", ["games", "net"]) == (
        "'gmaes' is not one of 2 labels; did you mean 'games'?"
    )
    assert decisions.label_reason("zzz", ["games", "net"]) == "'zzz' is not one of 2 labels"


def test_a_huge_label_is_not_quoted_whole() -> None:
    reason = decisions.label_reason("x" * 1_000_000, ["games"])
    assert reason == f"'{'x' * 80}…' is not one of 1 labels"


def test_known_labels_stay() -> None:
    index = index_of([Line("a", "games"), Line("b", "net", "test")])
    assert decisions.unknown_labels(index, ["net", "games", "web"]) == 0
    assert decisions.unknown_labels(index_of([]), ["net"]) == 0


def test_exempt_rows_need_no_label() -> None:
    index = index_of([Line("a", "x"), Line("b"), Line("c")])
    assert decisions.unknown_labels(index, ["x"], np.array([False, True, False])) == 1
    assert index.fate.tolist() == [Fate.KEPT, Fate.KEPT, Fate.LABEL_UNKNOWN]


def test_train_labels_are_those_of_rows_in_use() -> None:
    index = index_of([Line("a", "y"), Line("b", "x"), Line("c", "z", "test"), Line("d", "w")])
    index.leave(np.array([3]), Fate.DUPLICATE)
    assert decisions.train_labels(index) == ["x", "y"]


# --- contradictions ---


def test_contradictions_leave_together_and_only_within_their_split() -> None:
    lines = [Line("a", "x"), Line("b", "x"), Line("a", "y"), Line("a", "x", "test")]
    index = index_of(lines)
    assert decisions.contradictions(index) == 2
    assert kept(lines, index) == [lines[1], lines[3]]
    assert list(decisions.contradiction_reasons(index)) == [
        (0, "the same text is labelled 'x', 'y'"),
        (2, "the same text is labelled 'x', 'y'"),
    ]


def test_each_text_is_told_its_own_labels() -> None:
    lines = [Line("b", "w"), Line("a", "x"), Line("b", "v"), Line("a", "y"), Line("b", "u")]
    lines += [Line("a", "v", "test"), Line("a", "w", "test")]
    index = index_of(lines)
    decisions.contradictions(index)
    a, b = "the same text is labelled 'x', 'y'", "the same text is labelled 'u', 'v', 'w'"
    of_test = "the same text is labelled 'v', 'w'"
    assert list(decisions.contradiction_reasons(index)) == list(
        enumerate([b, a, b, a, b, of_test, of_test])
    )


def test_answers_that_differ_are_counted_where_there_are_no_labels() -> None:
    index = index_of([Line("a", answer="{}"), Line("a", answer="[]"), Line("b", answer="{}")])
    assert decisions.contradictions(index) == 2
    assert list(decisions.contradiction_reasons(index)) == [
        (0, "the same text has 2 different answers"),
        (1, "the same text has 2 different answers"),
    ]


def test_equal_answers_and_rows_that_left_contradict_nothing() -> None:
    index = index_of([Line("a", "x"), Line("a", "x"), Line("a", "y")])
    index.leave(np.array([2]), Fate.LABEL_UNKNOWN)
    assert decisions.contradictions(index) == 0
    assert list(decisions.contradiction_reasons(index)) == []
    assert decisions.contradictions(index_of([])) == 0


def test_opposite_preferences_leave_and_further_pairs_stay() -> None:
    lines = [
        Line("q", answer="good", rejected="bad"),
        Line("q", answer="good", rejected="worse"),
        Line("q", answer="bad", rejected="good"),
        Line("other", answer="bad", rejected="good"),
        Line("q", answer="worse", rejected="good", split="test"),
        Line("q", answer="good", rejected="bad"),
    ]
    index = index_of(lines)
    assert decisions.contradictions(index) == 3
    assert kept(lines, index) == [lines[1], lines[3], lines[4]]
    reason = "another row of the same prompt prefers the reply that this one rejects"
    assert list(decisions.contradiction_reasons(index)) == [(0, reason), (2, reason), (5, reason)]


# --- duplicates, leaks, length ---


def test_first_duplicate_stays() -> None:
    index = index_of([Line("a", "x"), Line("a", "x"), Line("a", "x", "test"), Line("a", "y")])
    assert decisions.duplicates(index) == 1
    assert index.fate.tolist() == [Fate.KEPT, Fate.DUPLICATE, Fate.KEPT, Fate.KEPT]
    assert decisions.duplicates(index) == 0


def test_a_row_that_left_is_no_first() -> None:
    index = index_of([Line("a", "x"), Line("a", "x")])
    index.leave(np.array([0]), Fate.OVERLONG)
    assert decisions.duplicates(index) == 0


def test_leaks_leave_train_and_never_test() -> None:
    lines = [
        Line("a", "x"),
        Line("b", "x"),
        Line("c", "x", group="g"),
        Line("d", "x"),
        Line("a", "y", "test"),
        Line("e", "x", "test", group="g"),
        Line("b", "x", "validation"),
        Line("a", "y", "validation"),
    ]
    index = index_of(lines)
    assert decisions.shared(index) == {"text": 2, "group": 1}
    assert decisions.leaks(index) == 4
    assert [line.text for line in kept(lines, index)] == ["d", "a", "e", "b"]
    assert decisions.left_out(index, faults=False) == {"leak-group": 1, "leak-text": 3}
    assert decisions.shared(index) == {"text": 0, "group": 0}


def test_a_leak_both_ways_counts_as_text() -> None:
    index = index_of([Line("a", group="g"), Line("a", split="test", group="g")])
    assert decisions.leaks(index) == 1
    assert index.counts() == {Fate.KEPT: 1, Fate.LEAK_TEXT: 1}


def test_rows_without_a_group_share_none() -> None:
    index = index_of([Line("a"), Line("b", split="test")])
    assert decisions.shared(index) == {"text": 0, "group": 0}
    assert decisions.leaks(index) == 0


def test_overlong_rows_leave() -> None:
    index = index_of([Line("a", tokens=8), Line("b", tokens=9)])
    assert decisions.overlong(index, 8) == 1
    assert index.fate.tolist() == [Fate.KEPT, Fate.OVERLONG]


# --- against plain Python ---


def plain_contradictions(lines: Sequence[Line], use: Sequence[bool]) -> list[bool]:
    said = defaultdict(set)
    for line, used in zip(lines, use, strict=True):
        if used:
            said[line.split, line.text].add(line.target)
    if any(line.rejected is not None for line in lines):
        return [x.target[::-1] in said[x.split, x.text] for x in lines]
    return [len(said[line.split, line.text]) > 1 for line in lines]


def plain_duplicates(lines: Sequence[Line], use: Sequence[bool]) -> list[bool]:
    seen = set()
    leave = []
    for line, used in zip(lines, use, strict=True):
        leave.append((line.split, line.id) in seen)
        if used:
            seen.add((line.split, line.id))
    return leave


def plain_leaks(lines: Sequence[Line], use: Sequence[bool]) -> list[bool]:
    def higher(one: Line, other: Line) -> bool:
        same = one.text == other.text or (one.group is not None and one.group == other.group)
        return same and SPLITS.index(other.split) > SPLITS.index(one.split)

    return [
        any(higher(line, other) for other, used in zip(lines, use, strict=True) if used)
        for line in lines
    ]


preferences = st.lists(
    st.builds(
        Line,
        text=st.sampled_from("pq"),
        split=st.sampled_from(SPLITS[:2]),
        answer=st.sampled_from("ab"),
        rejected=st.sampled_from("cde"),
    ).flatmap(
        lambda x: st.sampled_from(
            [x, Line(x.text, None, x.split, answer=str(x.rejected), rejected=x.answer)]
        )
    ),
    max_size=12,
)


@settings(deadline=None)
@pytest.mark.parametrize(
    ("rule", "plain"),
    [
        (decisions.contradictions, plain_contradictions),
        (decisions.duplicates, plain_duplicates),
        (decisions.leaks, plain_leaks),
    ],
)
@given(lines=any_lines | preferences, seed=st.integers(0, 99))
def test_rules_agree_with_plain_python(
    rule: Callable[[RowIndex], int], plain: Rule, lines: list[Line], seed: int
) -> None:
    index = index_of(lines)
    use = [random.Random(f"{seed} {i}").random() < 0.8 for i in range(len(lines))]
    index.leave(~np.array(use, dtype=bool), Fate.OVERLONG)
    leaving = [a and b for a, b in zip(plain(lines, use), use, strict=True)]
    assert rule(index) == sum(leaving)
    assert [fate not in (Fate.KEPT, Fate.OVERLONG) for fate in index.fate] == leaving


@settings(deadline=None)
@given(any_lines)
def test_rules_balance_and_leave_no_leak(lines: list[Line]) -> None:
    index = index_of(lines)
    decisions.unknown_labels(index, ["x", "y"])
    decisions.contradictions(index)
    decisions.duplicates(index)
    tests_before = index.inside("test").copy()
    decisions.leaks(index)
    assert decisions.shared(index) == {"text": 0, "group": 0}
    assert (index.inside("test") == tests_before).all()
    assert decisions.leaks(index) == 0
    decisions.overlong(index, 20)
    decisions.assert_balanced(books(index, read=len(lines)))
    told = [position for position, _ in decisions.contradiction_reasons(index)]
    assert told == np.flatnonzero(index.fate == Fate.CONTRADICTION).tolist()


@settings(deadline=None)
@given(any_lines, st.randoms(use_true_random=False))
def test_what_leaves_does_not_depend_on_order(lines: list[Line], rng: random.Random) -> None:
    """Of duplicates the first stays, but which contents stay is the same."""

    def left(order: list[Line]) -> Counter[tuple[int, Split, str | None]]:
        index = index_of(order)
        decisions.contradictions(index)
        decisions.duplicates(index)
        decisions.leaks(index)
        return Counter((x.id, x.split) for x in kept(order, index))  # type: ignore[misc]

    one_group_a_text = [
        Line(x.text, x.label, x.split, None if x.group is None else f"g{key(x.text) % 3}")
        for x in lines
    ]
    shuffled = rng.sample(one_group_a_text, len(lines))
    with_group = [x for x in one_group_a_text if x.group is not None]
    assert left(with_group) == left([x for x in shuffled if x.group is not None])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1))
def test_numbers_tell_rows_apart_by_all_their_keys(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    number = decisions.numbered(*columns)
    distinct = sorted(set(rows))
    assert number.tolist() == [distinct.index(row) for row in rows]


# --- books and classes ---


def books(index: RowIndex, read: int, generated: int = 0) -> DatasetCounts:
    return DatasetCounts(
        read=read,
        generated=generated,
        kept=int(index.kept.sum()),
        quarantined=decisions.left_out(index, faults=True),
        dropped=decisions.left_out(index, faults=False),
        changed={},
        splits={},
    )


def test_a_lost_row_is_noticed() -> None:
    index = index_of([Line("a", "x"), Line("a", "y"), Line("b", "x"), Line("b", "x")])
    decisions.contradictions(index)
    decisions.duplicates(index)
    assert decisions.left_out(index, faults=True) == {"contradiction": 2}
    assert decisions.left_out(index, faults=False) == {"duplicate": 1}
    decisions.assert_balanced(books(index, read=4))
    decisions.assert_balanced(books(index, read=3, generated=1))
    with pytest.raises(AssertionError, match="5 rows read or generated, 4 accounted for"):
        decisions.assert_balanced(books(index, read=5))


def test_classes_are_counted_absent_ones_too() -> None:
    lines = [Line("a", "x"), Line("b", "x"), Line("c", "y"), Line("d", "y", "test"), Line("e")]
    lines += [Line("f", "w", "validation"), Line("g", "x")]
    index = index_of(lines)
    index.leave(np.array([6]), Fate.LIMIT)
    assert index.label[4] == NO_LABEL
    counts = decisions.class_counts(index, ["z", "x", "y"])
    assert counts == {
        "train": {"z": 0, "x": 2, "y": 1, "w": 0},
        "validation": {"z": 0, "x": 0, "y": 0, "w": 1},
        "test": {"z": 0, "x": 0, "y": 1, "w": 0},
    }
    assert list(counts["train"]) == ["z", "x", "y", "w"]
    assert decisions.majority_share(counts["train"]) == pytest.approx(2 / 3)
    assert decisions.imbalance(counts["train"]) == 2.0


def test_without_rows_there_is_no_majority() -> None:
    counts = decisions.class_counts(index_of([]), ["x", "y"])
    assert counts["train"] == {"x": 0, "y": 0}
    assert decisions.majority_share(counts["train"]) is None
    assert decisions.imbalance(counts["train"]) is None


@pytest.mark.parametrize(
    ("lines", "labels", "absent", "detail"),
    [
        (
            [Line("a", "x"), Line("b", "y"), Line("c", "x"), Line("d", "y", "test")],
            ["x", "y"],
            0,
            "0 of 2 labels have no train row; the largest is 66.7% of them, 2.0 times the small",
        ),
        (
            [Line("a", "x"), Line("b", "y", "test"), Line("c", "y", "validation")],
            ["x", "y"],
            1,
            "1 of 2 labels have no train row: 'y' (1 validation, 1 test rows); give each",
        ),
        ([Line("a", "x"), Line("b", "y")], ["x", "y", "z"], 1, "'z'; give each"),
        ([Line("a", "x"), Line("b", "q", "test")], ["x"], 1, "'q' (1 test rows)"),
        ([], ["u", "v", "x", "y"], 4, "'u', 'v', 'x', ...; give each"),
    ],
)
def test_label_hygiene(
    lines: list[Line],
    labels: list[str],
    absent: int,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(GATES, "label-hygiene", "F10")  # type: ignore[arg-type]
    gate = decisions.label_hygiene(decisions.class_counts(index_of(lines), labels))
    assert (gate.measured, gate.status) == (absent, "fail" if absent else "pass")
    assert detail in gate.detail
