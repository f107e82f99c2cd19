"""Grounded rows: documents, distractors, and questions that the documents do not answer."""

from typing import Any

import pytest

from luthier.data.formats import (
    ROW_FORMATS,
    ClassificationOptions,
    FormatOptions,
    GroundedOptions,
    compose,
    parse,
    with_distractors,
)
from luthier.data.rows import Document, Parsed, RawRow

PLAIN = FormatOptions()


def contents(row: Parsed) -> list[str]:
    return [message["content"] for message in row.messages]


def grounded(number: int, **more: Any) -> Parsed:
    documents = [f"document {number}", {"title": f"T{number}", "text": f"other {number}"}]
    values = {
        "question": f"q{number}",
        "documents": documents,
        "answer": f"a{number}",
        "gold": [0],
    }
    return parse(RawRow("a.jsonl", 1, values | more), ROW_FORMATS["grounded"], {}, PLAIN)


def test_grounded_row_and_its_message() -> None:
    row = grounded(1)
    assert row.documents == [Document("document 1"), Document("other 1", "T1", is_gold=False)]
    composed = compose(row, PLAIN)
    assert contents(composed) == [
        "[1] document 1\n\n[2] T1\nother 1\n\nQuestion: q1",
        "a1",
    ]
    hostile = compose(grounded(2, documents=["{question}"]), PLAIN)
    assert contents(hostile)[0] == "[1] {question}\n\nQuestion: q2"


@pytest.mark.parametrize("none", [None, ""])
def test_a_row_without_an_answer_says_so(none: str | None) -> None:
    row = grounded(1, answer=none, gold=None)
    assert contents(row)[1] == GroundedOptions().not_found_reply
    assert not any(one.is_gold for one in row.documents or ())


def test_given_distractors_are_shuffled_among_the_documents() -> None:
    rows = [grounded(n, distractors=[f"far {n}", f"away {n}"]) for n in range(20)]
    places = [[one.is_gold for one in row.documents or ()].index(True) for row in rows]
    assert {len(row.documents or ()) for row in rows} == {4}
    assert set(places) == {0, 1, 2, 3}


def test_drawn_distractors_and_unanswerable_rows() -> None:
    rows = [grounded(n) for n in range(40)]
    options = GroundedOptions(distractors=2, unanswerable_fraction=0.5)
    given, made_rows = with_distractors(rows, options, seed=7)
    assert (given, made_rows) == with_distractors(rows, options, seed=7)
    assert given != with_distractors(rows, options, seed=8)[0]
    for before, after in zip(rows, given, strict=True):
        texts = [one.text for one in after.documents or ()]
        assert len(texts) == len(set(texts)) == 4
        assert {one.text for one in before.documents or ()} < set(texts)
        assert [one.text for one in after.documents or () if one.is_gold] == [
            texts_of_gold(before)
        ]
        assert after.messages == before.messages
    assert 10 <= len(made_rows) <= 30
    for place, row in made_rows:
        texts = [one.text for one in row.documents or ()]
        assert len(texts) == len(set(texts)) == 4, "as many documents as an answerable row"
        assert f"document {place}" not in texts
        assert contents(row) == [f"q{place}", options.not_found_reply]


def texts_of_gold(row: Parsed) -> str:
    return next(one.text for one in row.documents or () if one.is_gold)


def test_documents_of_the_same_question_are_never_drawn() -> None:
    rows = [grounded(n, question="q") for n in range(9)] + [grounded(50)]
    options = GroundedOptions(distractors=5, unanswerable_fraction=1.0)
    given, made = with_distractors(rows, options, seed=7)
    for before, after in zip(rows[:9], given[:9], strict=True):
        own = {one.text for one in before.documents or ()}
        drawn = {one.text for one in after.documents or ()} - own
        assert drawn
        assert drawn <= {"document 50", "other 50"}
    assert len(made) == 10
    for place, row in made[:9]:
        texts = {one.text for one in row.documents or ()}
        assert texts <= {f"other {place}", "document 50", "other 50"}


def test_a_gold_document_given_twice_is_gone_from_the_unanswerable_row() -> None:
    rows = [grounded(1, documents=["d", "d", "e"]), grounded(2)]
    [(_, row), _] = with_distractors(rows, GroundedOptions(unanswerable_fraction=1.0), seed=7)[1]
    assert sorted(one.text for one in row.documents or ()) == ["document 2", "e", "other 2"]


def test_a_batch_with_nothing_to_draw_from_stays_as_it_is() -> None:
    rows = [grounded(1, documents=["only"])]
    options = GroundedOptions(distractors=3, unanswerable_fraction=1.0)
    assert with_distractors(rows, options, seed=7) == (rows, [])
    assert with_distractors(rows, GroundedOptions(), seed=7) == (rows, [])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassificationOptions(template="no place"),
        lambda: GroundedOptions(template="{documents} alone"),
        lambda: GroundedOptions(template="{documents} {documents} {question}"),
    ],
)
def test_a_template_says_each_place_once(make: Any) -> None:
    with pytest.raises(ValueError, match="the template must say"):
        make()
