"""Cleaning: labels outside the set, one text with two labels, duplicates, leaks between splits."""

import difflib
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence

from luthier.data.rows import Ledger, Row, RowError, Split

# A row that stands in two splits leaves the lower one: never is a test row taken away.
_RANK: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


def known_labels(rows: Sequence[Row], labels: Collection[str], ledger: Ledger) -> list[Row]:
    """The rows whose label is one of `labels`; the others are quarantined."""
    kept = []
    for row in rows:
        if row.label in labels:
            kept.append(row)
            continue
        near = difflib.get_close_matches(str(row.label), labels, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        ledger.quarantine_row(
            row,
            RowError("label-unknown", f"'{row.label}' is not one of {len(labels)} labels{hint}"),
        )
    return kept


def without_contradictions(rows: Sequence[Row], ledger: Ledger) -> list[Row]:
    """Without the rows of one split that say different labels of one text: none can be trusted."""
    labels: dict[tuple[Split, str], set[str | None]] = defaultdict(set)
    for row in rows:
        labels[row.split, row.prompt_key].add(row.label)
    kept = []
    for row in rows:
        said = labels[row.split, row.prompt_key]
        if len(said) == 1:
            kept.append(row)
            continue
        names = ", ".join(sorted(f"'{label}'" for label in said))
        ledger.quarantine_row(row, RowError("contradiction", f"the same text is labelled {names}"))
    return kept


def without_duplicates(rows: Sequence[Row], ledger: Ledger) -> list[Row]:
    """The first of each split's rows with the same messages; the others are dropped."""
    seen: set[tuple[Split, str]] = set()
    kept = []
    for row in rows:
        if (row.split, row.id) in seen:
            ledger.drop("duplicate")
            continue
        seen.add((row.split, row.id))
        kept.append(row)
    return kept


def without_leaks(rows: Sequence[Row], ledger: Ledger) -> list[Row]:
    """Without the rows whose text or group also stands in validation (train) or test (both)."""
    highest: dict[Hashable, int] = {}
    for row in rows:
        for key in _identities(row):
            highest[key] = max(highest.get(key, 0), _RANK[row.split])
    kept = []
    for row in rows:
        leak = next((key for key in _identities(row) if highest[key] > _RANK[row.split]), None)
        if leak is None:
            kept.append(row)
        else:
            ledger.drop(f"leak-{leak[0]}")
    return kept


def shared_identities(rows: Sequence[Row]) -> dict[str, int]:
    """How many texts and how many groups stand in more than one split."""
    splits: dict[tuple[str, str], set[Split]] = defaultdict(set)
    for row in rows:
        for key in _identities(row):
            splits[key].add(row.split)
    shared = [key for key, found in splits.items() if len(found) > 1]
    return {kind: sum(key[0] == kind for key in shared) for kind in ("text", "group")}


def _identities(row: Row) -> Iterator[tuple[str, str]]:
    yield "text", row.prompt_key
    if row.group is not None:
        yield "group", row.group
