"""Questions that documents answer, and the rows that teach to look for the right document."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from luthier.data.formats.options import FormatOptions, GroundedOptions, fill
from luthier.data.formats.registry import row_format
from luthier.data.formats.values import kind_of, optional_text, text
from luthier.data.rows import Document, Parsed, RowError, message


@row_format(
    "grounded",
    task="grounded",
    needs=("question", "documents", "answer"),
    may=("gold", "distractors"),
)
def grounded(values: Mapping[str, object], options: FormatOptions) -> Parsed:
    """`question`, `documents` (texts or {title, text}) and `answer`; null where they have none.

    `gold`: positions, from 0, of the documents that the answer rests on; all of them without it.
    `distractors`: documents that do not help; shuffled among the others.

    The row stays apart (question, documents, answer) until `compose`.
    """
    question, answer = text(values, "question"), optional_text(values, "answer")
    documents = _documents(values["documents"], "documents")
    if not documents:
        raise RowError("documents-empty", "'documents' is an empty list")
    gold = _gold(values.get("gold"), len(documents), answer)
    documents = [replace(one, is_gold=place in gold) for place, one in enumerate(documents)]
    others = _documents(values.get("distractors") or [], "distractors")
    reply = options.grounded.not_found_reply if answer is None else answer
    row = Parsed([message("user", question), message("assistant", reply)], documents=documents)
    if others:
        documents += [replace(one, is_gold=False) for one in others]
        row.documents = _shuffled(documents, _key(row, 0))
    return row


def compose(row: Parsed, options: FormatOptions) -> Parsed:
    """The row as the model sees it: the question and the numbered documents in the template."""
    shown = "\n\n".join(
        f"[{number}] {one.title}\n{one.text}" if one.title else f"[{number}] {one.text}"
        for number, one in enumerate(row.documents or (), start=1)
    )
    question, *reply = row.messages
    asked = fill(options.grounded.template, documents=shown, question=question["content"])
    return replace(row, messages=[message("user", asked), *reply])


def with_distractors(
    rows: Sequence[Parsed], options: GroundedOptions, seed: int
) -> tuple[list[Parsed], list[tuple[int, Parsed]]]:
    """A batch with documents of its other rows among each row's own, and the rows made from it.

    Made rows are (position of the row it was made from, row): as many documents, but none of
    those that the answer rests on, and `not_found_reply`. All depends on the batch's contents
    and the seed alone. A document drawn never belongs to a row with the same question; whether it
    answers the question even so, nobody has looked.
    """
    if not options.distractors and not options.unanswerable_fraction:
        return list(rows), []
    pool = list(dict.fromkeys(replace(one, is_gold=False) for one in _all_documents(rows)))
    belonging = defaultdict[str, set[str]](set)  # texts of the documents, by question
    for row in rows:
        belonging[row.messages[0]["content"]].update(one.text for one in row.documents or ())
    given, made = [], []
    for place, row in enumerate(rows):
        key, own = _key(row, seed), list(row.documents or ())
        gold = {one.text for one in own if one.is_gold}
        others = [one for one in own if one.text not in gold]
        missing = len(own) - len(others)
        taken = set(belonging[row.messages[0]["content"]])
        drawn = list(_draw(pool, taken, options.distractors + missing, key))
        added = drawn[: options.distractors]
        given.append(replace(row, documents=_shuffled(own + added, key) if added else own))
        others += drawn
        if gold and others and _share(key) < options.unanswerable_fraction:
            reply = message("assistant", options.not_found_reply)
            made.append(
                (place, Parsed([row.messages[0], reply], documents=_shuffled(others, key)))
            )
    return given, made


def _documents(found: object, column: str) -> list[Document]:
    if not isinstance(found, list):
        raise RowError(f"{column}-not-list", f"'{column}' is {kind_of(found)}, not a list")
    return [_document(f"{column}-fields", number, one) for number, one in enumerate(found, 1)]


def _document(kind: str, number: int, found: object) -> Document:
    values = found if isinstance(found, dict) else {"text": found}
    try:
        return Document(text({"text": values.get("text")}, "text"), optional_text(values, "title"))
    except RowError as error:
        raise RowError(kind, f"document {number}: {error}") from error


def _gold(found: object, count: int, answer: str | None) -> Sequence[int]:
    if found is None:
        return range(count) if answer is not None else ()
    if not isinstance(found, list) or not all(type(place) is int for place in found):
        raise RowError("gold-not-positions", "'gold' is not a list of positions")
    if any(not 0 <= place < count for place in found):
        raise RowError("gold-range", f"'gold' is {found}, of {count} documents counted from 0")
    if bool(found) != (answer is not None):
        has = "no answer, but" if found else "an answer, but no"
        raise RowError("gold-mismatch", f"the row has {has} gold documents")
    return found


def _all_documents(rows: Sequence[Parsed]) -> Iterator[Document]:
    for row in rows:
        yield from row.documents or ()


def _draw(pool: Sequence[Document], taken: set[str], count: int, key: bytes) -> Iterator[Document]:
    """Up to `count` documents whose texts are not taken, none twice."""
    for turn in range(8 * count):  # enough but in tiny batches, where fewer will do
        if count == 0:
            return
        number = int.from_bytes(sha256(key + turn.to_bytes(4, "big")).digest()[:8], "big")
        one = pool[number % len(pool)]
        if one.text not in taken:
            taken.add(one.text)
            count -= 1
            yield one


def _shuffled(documents: Sequence[Document], key: bytes) -> list[Document]:
    return sorted(documents, key=lambda one: sha256(key + one.text.encode()).digest())


def _share(key: bytes) -> float:
    """A number in [0, 1) that belongs to a key."""
    return int.from_bytes(sha256(key + b"share").digest()[:8], "big") / 2**64


def _key(row: Parsed, seed: int) -> bytes:
    content = [one["content"] for one in row.messages]
    content += [one.text for one in row.documents or ()]
    return sha256(json.dumps([seed, content]).encode()).digest()
