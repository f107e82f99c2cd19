"""Near copies are found, every one, and nothing else; splits do not leak into one another."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import near_grams, near_pairs
from luthier.data.hashed import Hashed, KeySet
from luthier.data.index import Fate
from luthier.data.near import NearSection, Work, search
from luthier.data.rows import Split
from luthier.data.shingles import (
    MISS_PROBABILITY,
    PERMUTATIONS,
    Ragged,
    band_keys,
    banding,
    n_grams,
    similarity,
    word_pairs,
)
from luthier.data.words import hash_words
from luthier.data.workers import Workers
from near_cases import CHANGES, Case, Memory, index_of, nothing, searched, text_of, vocabulary

WORDS = vocabulary()


def hashed(*texts: str) -> list[list[int]]:
    found = hash_words(texts)
    return [row.tolist() for row in np.split(found.values, found.lengths.cumsum()[:-1])]


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(ragged.values, ragged.lengths.cumsum()[:-1])]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Hello,  World!", "hello world"),
        ("**Hello** # world", "hello world"),
        ("\uff48\uff45\uff4c\uff4c\uff4f world", "hello world"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "caf\u00e9"),
        ("one - two", "one, two"),
        ("no\0break", "no break"),
    ],
)
def test_words_are_the_same_whatever_their_dress(left: str, right: str) -> None:
    first, second = hashed(left, right)
    assert first == second
    assert first


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("what is 7 + 5", "what is 7 - 5"),
        ("what is 7*5", "what is 7/5"),
        ("heat to -5 degrees", "heat to 5 degrees"),
        ("is x < y", "is x > y"),
        ("I write C", "I write C++"),
        ("???", "!!!"),
        ("कि", "का"),
        ("👍", "👎"),
        ("in a", "ina"),
        ("set to 40 %", "set to 45 %"),
    ],
)
def test_texts_that_ask_different_things_differ(left: str, right: str) -> None:
    first, second = hashed(left, right)
    assert first != second


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n", 0),
        ("...", 1),
        ("हिन्दी भाषा", 2),
        ("我喜欢茶", 4),
        ("snake_case x1", 2),
        ("\ud800", 1),
    ],
)
def test_words_are_counted_by_script(text: str, count: int) -> None:
    assert [len(row) for row in hashed(text)] == [count]


def test_a_sign_at_the_end_of_a_text_does_not_see_the_next_text() -> None:
    assert hashed("price -", "5 euro")[0] == hashed("price -")[0] == hashed("price")[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6))
def test_the_words_of_a_text_do_not_depend_on_its_neighbours(texts: list[str]) -> None:
    assert hash_words(texts).lengths.shape == (len(texts),)
    assert [*hashed(*texts, "end")] == [hashed(text)[0] for text in [*texts, "end"]]


small_rows = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=8)


def ragged(rows: list[list[int]]) -> Ragged:
    flat = np.array([value for row in rows for value in row], dtype=np.uint32)
    return Ragged(flat, np.array([len(row) for row in rows], dtype=np.int64))


@settings(max_examples=80, deadline=None)
@given(small_rows)
def test_ragged_rows_are_taken_and_made_sets_as_lists_are(rows: list[list[int]]) -> None:
    order = [*reversed(range(len(rows))), 0]
    assert rows_of(ragged(rows).take(np.array(order))) == [rows[number] for number in order]
    assert rows_of(ragged(rows).sets()) == [sorted(set(row)) for row in rows]


def brute_pairs(words: list[int]) -> set[tuple[int, ...]]:
    return set(pairwise(words)) if len(words) > 1 else {tuple(words)} - {()}


def brute_jaccard(left: list[int], right: list[int]) -> float:
    first, second = brute_pairs(left), brute_pairs(right)
    return len(first & second) / max(len(first | second), 1)


@settings(max_examples=80, deadline=None)
@given(small_rows)
def test_similarity_is_the_exact_jaccard_of_word_pairs(rows: list[list[int]]) -> None:
    others = rows[1:] + rows[:1]
    found = similarity(word_pairs(ragged(rows)).sets(), word_pairs(ragged(others)).sets())
    assert found.tolist() == [brute_jaccard(a, b) for a, b in zip(rows, others, strict=True)]


@settings(max_examples=80, deadline=None)
@given(small_rows, st.integers(2, 5))
def test_n_grams_are_equal_where_the_words_are(rows: list[list[int]], size: int) -> None:
    grams, places = n_grams(ragged(rows), size)
    expected, first = [], 0
    for row in rows:
        places_in_row = range(len(row) - size + 1)
        expected += [(first + at, tuple(row[at : at + size])) for at in places_in_row]
        first += len(row)
    assert places.tolist() == [place for place, _ in expected]
    runs = [run for _, run in expected]
    assert (
        len(set(zip(grams.tolist(), runs, strict=True)))
        == len(set(runs))
        == len(set(grams.tolist()))
    )


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_a_key_set_finds_what_is_in_it(inside: set[int], asked: list[int]) -> None:
    values = np.array(sorted(inside), dtype=np.uint64)
    wanted = np.array([*asked, *sorted(inside)], dtype=np.uint64)
    which, place = KeySet.of(values).find(wanted)
    assert which.tolist() == [at for at, value in enumerate(wanted.tolist()) if value in inside]
    assert values[place].tolist() == wanted[which].tolist()


@pytest.mark.parametrize("jaccard", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(jaccard: float) -> None:
    bands, size = banding(jaccard)
    assert bands * size <= PERMUTATIONS
    assert (1 - jaccard**size) ** bands <= MISS_PROBABILITY


def test_band_keys_agree_as_often_as_similarity_says() -> None:
    draw = random.Random(3)
    texts = [text_of(draw, WORDS, 60) for _ in range(300)]
    pairs = word_pairs(hash_words([*texts, *(CHANGES["one word in twenty"](t) for t in texts)]))
    keys = band_keys(pairs, 0.8)
    share = float((keys[:, :300] == keys[:, 300:]).mean())
    sets = pairs.sets()
    jaccard = similarity(sets.take(np.arange(300)), sets.take(np.arange(300, 600)))
    assert share == pytest.approx(float((jaccard ** banding(0.8)[1]).mean()), abs=0.03)


def corpus(seed: int, splits: tuple[Split, ...]) -> list[Case]:
    """80 originals, each with 0 to 3 changed copies, in a random order."""
    draw = random.Random(seed)
    rows = []
    for number in range(80):
        text = text_of(draw, WORDS, draw.randint(1, 30))
        for _ in range(draw.randint(1, 4)):
            found = text.split()
            for _ in range(draw.randint(0, 4)):
                found[draw.randrange(len(found))] = draw.choice(WORDS)
            rows.append(Case(draw.choice(splits), " ".join(found), f"answer{number % 3}"))
    draw.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_near_duplicates_are_those_of_a_brute_force_search(tmp_path: Path, seed: int) -> None:
    rows = corpus(seed, ("train",))
    words = hashed(*(f"{row.prompt} {row.reply}" for row in rows))
    expected = [
        any(
            rows[i].reply == rows[j].reply and brute_jaccard(words[i], words[j]) >= 0.8
            for i in range(j)
        )
        for j in range(len(rows))
    ]
    index, counts = searched(rows, tmp_path)
    assert (index.fate == Fate.NEAR_DUPLICATE).tolist() == expected
    assert counts.near_duplicates == sum(expected) > 5


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_leaks_are_those_of_a_brute_force_search(tmp_path: Path, seed: int) -> None:
    rows = corpus(seed, ("train", "validation", "test"))
    words = hashed(*(row.prompt for row in rows))
    index = index_of(rows)
    expected = [
        any(
            index.split[i] > index.split[j] and brute_jaccard(words[i], words[j]) >= 0.8
            for i in range(len(rows))
        )
        for j in range(len(rows))
    ]
    index, counts = searched(rows, tmp_path)
    assert (index.fate == Fate.LEAK_NEAR).tolist() == expected
    assert counts.leaks == sum(expected) > 5


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("low", "high"),
    [("train", "test"), ("train", "validation"), ("validation", "test"), ("train", "train")],
)
def test_every_planted_copy_is_caught(
    tmp_path: Path, change: str, low: Split, high: Split
) -> None:
    draw = random.Random(8)
    originals = [text_of(draw, WORDS, draw.choice([20, 40, 100])) for _ in range(150)]
    healthy = [Case(low, text_of(draw, WORDS, 30), "yes") for _ in range(150)]
    copies = [Case(low, CHANGES[change](text), "yes") for text in originals]
    rows = [*(Case(high, text, "yes") for text in originals), *healthy, *copies]
    index, counts = searched(rows, tmp_path)
    assert (index.fate != Fate.KEPT).tolist() == [False] * 300 + [True] * 150
    assert (counts.near_duplicates if low == high else counts.leaks) == 150


@pytest.mark.parametrize(
    ("left", "right", "fate"),
    [
        (("set kitchen light to 40 %", "40"), ("set kitchen light to 45 %", "45"), Fate.KEPT),
        (
            ("set kitchen light to 40 %", "40"),
            ("Set kitchen light to 40%!", "40"),
            Fate.NEAR_DUPLICATE,
        ),
        (("turn on the lamp", "on"), ("turn off the lamp", "off"), Fate.KEPT),
        (
            ("10 S Dearborn, Chicago", '{"a": "S"}'),
            ("10 S. Dearborn, Chicago", '{"a": "S."}'),
            Fate.NEAR_DUPLICATE,
        ),
        (("yes", ""), ("no", ""), Fate.KEPT),
        (("", "yes"), ("", "yes."), Fate.NEAR_DUPLICATE),
    ],
)
def test_short_rows_are_judged_as_people_would(
    tmp_path: Path, left: tuple[str, str], right: tuple[str, str], fate: Fate
) -> None:
    index, _ = searched([Case("train", *left), Case("train", *right)], tmp_path)
    assert index.fate.tolist() == [Fate.KEPT, fate]


LONG = text_of(random.Random(1), WORDS, 60)


@pytest.mark.parametrize(
    ("first", "second", "fate"),
    [
        (
            Case("train", LONG, "games", 0),
            Case("train", LONG.upper(), "games", 0),
            Fate.NEAR_DUPLICATE,
        ),
        (Case("train", LONG, "games", 0), Case("train", LONG.upper(), "math", 1), Fate.KEPT),
        (Case("train", LONG, f"{LONG} a", 0), Case("train", LONG, f"{LONG} b", 1), Fate.KEPT),
        (Case("train", LONG, f"{LONG} a"), Case("train", LONG, f"{LONG} b"), Fate.NEAR_DUPLICATE),
        (Case("train", LONG, '{"level": 40}'), Case("train", LONG, '{"level": 45}'), Fate.KEPT),
        (
            Case("train", "say", f"{LONG} yes", mirror="a"),
            Case("train", "say", f"yes {LONG}", mirror="b"),
            Fate.KEPT,
        ),
    ],
    ids=[
        "same-label",
        "other-label",
        "long-reply-other-label",
        "like-replies",
        "other-target",
        "preference",
    ],
)
def test_near_duplicates_teach_the_same(
    tmp_path: Path, first: Case, second: Case, fate: Fate
) -> None:
    index, _ = searched([first, second], tmp_path)
    assert index.fate.tolist() == [Fate.KEPT, fate]


def test_a_leak_is_of_the_prompt_whatever_the_reply(tmp_path: Path) -> None:
    rows = [Case("train", LONG, "a"), Case("test", LONG + " x", "b"), Case("train", "other", "b")]
    assert searched(rows, tmp_path)[0].fate.tolist() == [Fate.LEAK_NEAR, Fate.KEPT, Fate.KEPT]


def test_rows_without_a_prompt_do_not_leak(tmp_path: Path) -> None:
    rows = [Case("train", "", "one answer"), Case("test", "", "quite another thing")]
    assert searched(rows, tmp_path)[0].kept.all()


def test_what_a_template_repeats_is_not_similarity(tmp_path: Path) -> None:
    draw = random.Random(2)
    instruction = text_of(draw, WORDS, 70)
    texts = [text_of(draw, WORDS, 7) for _ in range(200)]
    splits: list[Split] = ["test" if number % 5 == 0 else "train" for number in range(200)]
    rows = [
        Case(split, f"{instruction}: {text}", "yes")
        for split, text in zip(splits, texts, strict=True)
    ]
    copy = Case("train", f"{instruction}; {texts[5].upper()}.", "no")
    index, counts = searched([*rows, copy], tmp_path)
    assert np.flatnonzero(~index.kept).tolist() == [200]
    assert (counts.leaks, counts.ngram_leaks, counts.near_duplicates) == (1, 0, 0)


def test_a_template_of_one_source_among_others_is_seen(tmp_path: Path) -> None:
    draw = random.Random(2)
    instruction = text_of(draw, WORDS, 70)
    plain = [Case("train", text_of(draw, WORDS, 20), source=0) for _ in range(400)]
    splits: list[Split] = ["train", "test"]
    templated = [
        Case(split, f"{instruction} {text_of(draw, WORDS, 7)}", source=1)
        for split in splits
        for _ in range(40)
    ]
    assert searched(plain + templated, tmp_path)[0].kept.all()


def test_thousands_of_rows_that_differ_in_a_number_are_found_and_are_fast(tmp_path: Path) -> None:
    draw = random.Random(2)
    filler = [Case("train", text_of(draw, WORDS, 6), "no") for _ in range(21000)]
    template = "please set the {} in our big old house by the sea to the level {} right now thanks"
    same = [Case("train", template.format("lamp", number), "yes") for number in range(5000)]
    index, counts = searched([*filler, *same], tmp_path)
    assert counts.near_duplicates >= 4999
    assert index.kept[:21000].sum() >= 20990  # six random words are near six others now and then
    assert index.kept[21000:].sum() == 1


@pytest.mark.parametrize("across", [False, True])
def test_pairs_grow_with_rows_not_with_their_square(tmp_path: Path, across: bool) -> None:
    rows = 5000
    keys = np.full((26, rows), 7, dtype=np.uint64)
    np.save(tmp_path / "prompt-keys-0.npy", keys)
    rank = (np.arange(rows) % 2 * 2 if across else np.zeros(rows)).astype(np.uint8)
    found = near_pairs.candidates(Hashed(tmp_path, (rows,)), "prompt", 25, rank, across)
    assert rows / 2 <= len(found) <= (near_pairs.NEIGHBOURS + 1) * rows


def run_rows(shared: int, train: int, high: Split = "test", low: Split = "train") -> list[Case]:
    """`train` rows of `low` and one of `high` that share so many words in a row."""
    draw = random.Random(5)
    run = text_of(draw, WORDS, shared)
    return [
        Case(split, f"{text_of(draw, WORDS, 40)} {run} {text_of(draw, WORDS, 40)}")
        for split in [*[low] * train, high]
    ]


@pytest.mark.parametrize(
    ("shared", "train", "leaks"), [(12, 3, 0), (13, 3, 3), (13, 10, 10), (13, 11, 0), (30, 11, 0)]
)
def test_a_run_of_13_words_is_a_leak_unless_it_is_boilerplate(
    tmp_path: Path, shared: int, train: int, leaks: int
) -> None:
    index, counts = searched(run_rows(shared, train), tmp_path)
    assert int((index.fate == Fate.LEAK_NGRAM).sum()) == counts.ngram_leaks == leaks
    assert index.fate[-1] == Fate.KEPT


@pytest.mark.parametrize(
    ("low", "high", "leaks"),
    [
        ("train", "validation", 1),
        ("validation", "test", 1),
        ("train", "train", 0),
        ("test", "test", 0),
    ],
)
def test_runs_leak_from_higher_splits_only(
    tmp_path: Path, low: Split, high: Split, leaks: int
) -> None:
    index, counts = searched(run_rows(20, 1, high, low), tmp_path)
    assert counts.ngram_leaks == leaks
    assert index.fate.tolist() == [Fate.LEAK_NGRAM if leaks else Fate.KEPT, Fate.KEPT]


def test_a_run_in_the_reply_is_no_leak(tmp_path: Path) -> None:
    train, test = run_rows(20, 1)
    rows = [Case("train", "say something", train.prompt), test]
    assert searched(rows, tmp_path)[0].kept.all()


def test_blocks_of_runs_find_what_one_block_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for seed in range(6) for row in run_rows(13 + seed, 3)] + run_rows(20, 2)
    draw = random.Random(1)
    rows += [Case(draw.choice(["train", "validation"]), row.prompt + " x y") for row in rows]
    whole = searched(rows, tmp_path, size=5)
    monkeypatch.setattr(near_grams, "_BLOCK", 100)
    blocks = searched(rows, tmp_path, size=5)
    assert whole[1] == blocks[1]
    assert whole[0].fate.tolist() == blocks[0].fate.tolist()


def test_failing_on_leaks_takes_nothing_away_and_counts_the_same(tmp_path: Path) -> None:
    rows = [*corpus(4, ("train", "validation", "test")), *run_rows(13, 3)]
    section = NearSection()
    dropped, counts = searched(rows, tmp_path, section)
    failed, same = searched(rows, tmp_path, section, on_leak="fail")
    assert counts == same
    assert counts.leaks > 0
    assert counts.ngram_leaks >= 3
    assert int((~dropped.kept).sum()) == counts.leaks + counts.ngram_leaks
    assert failed.kept.all()


def test_near_duplicates_are_counted_and_kept_by_default(tmp_path: Path) -> None:
    rows = [Case("train", LONG), Case("train", LONG.upper())]
    index, counts = searched(rows, tmp_path, NearSection())
    assert index.kept.all()
    assert counts.near_duplicates == 1


def test_a_row_repeats_only_rows_that_stay(tmp_path: Path) -> None:
    """The second row's only twin leaves as a leak, so it is a twin no more."""
    test = text_of(random.Random(3), WORDS, 20).split()
    first = [*test[:-1], "x"]
    second = ["y", *first[1:-1], "z"]
    rows = [Case(s, " ".join(t)) for s, t in (("train", first), ("train", second), ("test", test))]
    index, counts = searched(rows, tmp_path)
    assert index.fate.tolist()[0] == Fate.LEAK_NEAR
    assert counts.near_duplicates == 0


def test_rows_that_left_before_take_no_part(tmp_path: Path) -> None:
    rows = [Case("test", LONG), Case("train", LONG), *run_rows(20, 1)]
    index = index_of(rows)
    index.leave(np.array([0, 3]), Fate.DUPLICATE)
    index, counts = searched(rows, tmp_path, index=index)
    assert index.fate.tolist() == [Fate.DUPLICATE, Fate.KEPT, Fate.KEPT, Fate.DUPLICATE]
    assert (counts.rows, counts.leaks) == (2, 0)


def test_no_rows_at_all(tmp_path: Path) -> None:
    index, counts = searched([], tmp_path)
    assert (len(index), counts.rows, counts.examples) == (0, 0, [])


def test_processes_and_parts_change_nothing(tmp_path: Path) -> None:
    rows = [
        *corpus(4, ("train", "validation", "test")),
        *run_rows(15, 4),
        Case("test", "ünï codé"),
    ]
    whole, counts = searched(rows, tmp_path)
    for size, processes in ((11, 1), (50, 2)):
        index, same = searched(rows, tmp_path, size=size, processes=processes)
        assert index.fate.tolist() == whole.fate.tolist()
        assert same == counts


def test_examples_name_both_rows_and_show_their_texts(tmp_path: Path) -> None:
    rows = [Case("test", LONG, "b"), Case("train", LONG.upper(), "a"), *corpus(1, ("train",))]
    _, counts = searched(rows, tmp_path)
    leak = counts.examples[0]
    assert (leak.kind, leak.left_out, leak.because_of) == (
        "leak-near",
        "rows.jsonl:2",
        "rows.jsonl:1",
    )
    assert (leak.similarity, leak.text, leak.other) == (1.0, LONG.upper()[:300], LONG[:300])
    assert 2 <= len(counts.examples) <= 20
    assert {example.kind for example in counts.examples} == {"leak-near", "near-duplicate"}


def test_progress_is_told(tmp_path: Path) -> None:
    rows = corpus(1, ("train",))
    heard: list[tuple[str, int, int]] = []
    with Workers(1, nothing) as pool:
        work = Work(pool, tmp_path, lambda *step: heard.append(step))
        search(Memory(rows, 50), index_of(rows), NearSection(), (), "drop", work)
    parts = -(-len(rows) // 50)
    assert [step for step in heard if step[0] == "words of rows"][-1] == (
        "words of rows",
        parts,
        parts,
    )
