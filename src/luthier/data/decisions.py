"""Decisions on the row index: labels, contradictions, duplicates, leaks between splits, books.

Each rule looks at the rows still kept, gives those that go a `Fate`, and returns how many.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.index import NO_KEY, NO_LABEL, Fate, RowIndex
from luthier.data.rows import SPLITS, Split
from luthier.data.summary import DatasetCounts
from luthier.gates import Gate, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXAMPLES = 3
_LABEL_LIMIT_CHARACTERS = 80  # of a label in a message; the search for near ones is quadratic


def train_labels(index: RowIndex) -> list[str]:
    """The labels of the kept train rows, sorted by name."""
    return sorted(label for label, rows in _label_counts(index, "train").items() if rows)


def unknown_labels(
    index: RowIndex, labels: Sequence[str], exempt: "NDArray[np.bool_] | None" = None
) -> int:
    """Rows whose label is not one of `labels`, or that have none, cannot be used.

    `exempt` rows (replay) are no part of the task and need none.
    """
    import numpy as np

    allowed = frozenset(labels)
    known = np.array([*(label in allowed for label in index.labels), False])
    unusable = ~known[index.label]  # NO_LABEL is -1: the last entry
    return index.leave(unusable if exempt is None else unusable & ~exempt, Fate.LABEL_UNKNOWN)


def label_reason(name: str, labels: Sequence[str]) -> str:
    """What quarantine.jsonl says of an unknown label, with the nearest known one."""
    shown = name if len(name) <= _LABEL_LIMIT_CHARACTERS else name[:_LABEL_LIMIT_CHARACTERS] + "…"
    near = difflib.get_close_matches(shown, labels, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"'{shown}' is not one of {len(labels)} labels{hint}"


def contradictions(index: RowIndex) -> int:
    """Rows of one split that answer one text differently all leave: none can be trusted.

    Rows with a `mirror_key` (preferences) contradict each other when one prefers what the other
    rejects; there, several pairs for one prompt are as they should be.
    """
    import numpy as np

    left = 0
    for split in SPLITS:
        rows = np.flatnonzero(index.inside(split))
        if len(rows):
            left += index.leave(rows[_contradicting(index, rows)], Fate.CONTRADICTION)
    return left


def _contradicting(index: RowIndex, rows: "NDArray[np.int64]") -> "NDArray[np.bool_]":
    if (index.mirror_key != NO_KEY).any():
        number = _pair_numbers(index, rows)
        low, high = extremes(number, index.target_key[rows] > index.mirror_key[rows])
    else:
        number = numbered(index.prompt_key[rows])
        low, high = extremes(number, index.target_key[rows])
    contradicting: NDArray[np.bool_] = (low != high)[number]
    return contradicting


def _pair_numbers(index: RowIndex, rows: "NDArray[np.int64]") -> "NDArray[np.int32]":
    """Preferences of one prompt with the same two replies, in whichever order, have one number."""
    import numpy as np

    target, mirror = index.target_key[rows], index.mirror_key[rows]
    replies = numbered(np.minimum(target, mirror), np.maximum(target, mirror))
    return numbered(index.prompt_key[rows], replies)


def contradiction_reasons(index: RowIndex) -> Iterator[tuple[int, str]]:
    """Position and reason of each row that left as a contradiction, in the order of reading."""
    import numpy as np

    rows = np.flatnonzero(index.fate == Fate.CONTRADICTION)
    if not len(rows):
        return
    if (index.mirror_key[rows] != NO_KEY).any():
        for row in rows.tolist():
            yield row, "another row of the same prompt prefers the reply that this one rejects"
        return
    number = numbered(index.prompt_key[rows], index.split[rows])
    reasons = _answers(index, rows, number)
    for row, group in zip(rows.tolist(), number.tolist(), strict=True):
        yield row, reasons[group]


def _answers(
    index: RowIndex, rows: "NDArray[np.int64]", number: "NDArray[np.int32]"
) -> dict[int, str]:
    """What the rows of each number answer: their labels, or else how many answers there are."""
    import numpy as np

    has_labels = bool((index.label[rows] != NO_LABEL).all())
    answers = index.label[rows] if has_labels else numbered(index.target_key[rows])
    span = np.int64(answers.max()) + 1
    said: dict[int, list[int]] = {}
    for pair in np.unique(number * span + answers).tolist():
        said.setdefault(pair // int(span), []).append(pair % int(span))
    if not has_labels:
        return {
            group: f"the same text has {len(found)} different answers"
            for group, found in said.items()
        }
    return {
        group: "the same text is labelled "
        + ", ".join(sorted(f"'{index.labels[label]}'" for label in found))
        for group, found in said.items()
    }


def duplicates(index: RowIndex) -> int:
    """Of the rows of one split that are the same, roles and texts, the first one read stays."""
    import numpy as np

    left = 0
    for split in SPLITS:
        rows = np.flatnonzero(index.inside(split))
        repeats = np.ones(len(rows), dtype=np.bool_)
        repeats[np.unique(index.id_key[rows], return_index=True)[1]] = False
        left += index.leave(rows[repeats], Fate.DUPLICATE)
    return left


def leaks(index: RowIndex) -> int:
    """Rows leave whose text, or group, also stands in a split of higher rank.

    SPLITS is in the order of rank: train gives way to validation, and both to test, so that never
    is a test row taken away. A row that leaks both ways counts as LEAK_TEXT.
    """
    leaving = []  # both are found before a row leaves: what leaves by its text still had a group
    for keys, fate in ((index.prompt_key, Fate.LEAK_TEXT), (index.group_key, Fate.LEAK_GROUP)):
        rows, number = _keyed(index, keys)
        split = index.split[rows]
        leaving.append((rows[extremes(number, split)[1][number] > split], fate))
    return sum(index.leave(rows, fate) for rows, fate in leaving)


def shared(index: RowIndex) -> dict[str, int]:
    """How many texts and how many groups stand in more than one split: F08."""
    found = {}
    for name, keys in (("text", index.prompt_key), ("group", index.group_key)):
        rows, number = _keyed(index, keys)
        low, high = extremes(number, index.split[rows])
        found[name] = int((low != high).sum())
    return found


def _keyed(
    index: RowIndex, keys: "NDArray[np.uint64]"
) -> "tuple[NDArray[np.int64], NDArray[np.int32]]":
    """The kept rows that have a key, and its number."""
    import numpy as np

    rows = np.flatnonzero(index.kept & (keys != NO_KEY))
    return rows, numbered(keys[rows])


def overlong(index: RowIndex, max_length_tokens: int) -> int:
    """Rows of more tokens than that leave."""
    return index.leave(index.tokens > max_length_tokens, Fate.OVERLONG)


def numbered(keys: "NDArray[Any]", *more: "NDArray[Any]") -> "NDArray[np.int32]":
    """A number from 0 up for each row; rows whose keys are all equal have one number."""
    import numpy as np

    for other in more:
        keys = numbered(keys) * np.int64(len(keys)) + numbered(other)
    order = np.argsort(keys)
    changes = np.zeros(len(keys), dtype=np.bool_)
    in_order = keys[order]
    changes[1:] = in_order[1:] != in_order[:-1]
    del in_order  # np.unique would need twice the memory
    number = np.empty(len(keys), dtype=np.int32)
    number[order] = np.cumsum(changes, dtype=np.int32)
    return number


def extremes(
    number: "NDArray[np.int32]", values: "NDArray[Any]"
) -> "tuple[NDArray[Any], NDArray[Any]]":
    """The least and the greatest value of the rows of each number."""
    import numpy as np

    size = int(number.max()) + 1 if len(number) else 0
    low, high = np.zeros((2, size), dtype=values.dtype)
    low[number] = values  # any value of the number's own rows to begin with
    high[:] = low
    np.minimum.at(low, number, values)
    np.maximum.at(high, number, values)
    return low, high


def left_out(index: RowIndex, *, faults: bool) -> dict[str, int]:
    """Rows by reason: those in quarantine.jsonl (`faults`), or those that are only counted."""
    found = {
        fate.reason: rows
        for fate, rows in index.counts().items()
        if fate != Fate.KEPT and fate.is_fault is faults
    }
    return dict(sorted(found.items()))


def assert_balanced(counts: DatasetCounts) -> None:
    """No row appeared or vanished: read + generated = kept + all quarantined + all dropped."""
    came = counts.read + counts.generated
    found = counts.kept + sum(counts.quarantined.values()) + sum(counts.dropped.values())
    assert came == found, f"{came} rows read or generated, {found} accounted for"


def class_counts(index: RowIndex, labels: Sequence[str]) -> dict[Split, dict[str, int]]:
    """Kept rows of each class in every split, absent ones as 0: `labels`, then any others."""
    found = {split: _label_counts(index, split) for split in SPLITS}
    others = sorted({label for rows in found.values() for label in rows if rows[label]})
    names = list(dict.fromkeys([*labels, *others]))
    return {split: {name: found[split].get(name, 0) for name in names} for split in SPLITS}


def _label_counts(index: RowIndex, split: Split) -> dict[str, int]:
    import numpy as np

    rows = np.bincount(index.label[index.inside(split)] + 1, minlength=len(index.labels) + 1)
    return dict(zip(index.labels, rows[1:].tolist(), strict=True))


def majority_share(classes: Mapping[str, int]) -> float | None:
    """The accuracy of always saying the largest class; None without rows."""
    total = sum(classes.values())
    return max(classes.values()) / total if total else None


def imbalance(classes: Mapping[str, int]) -> float | None:
    """How many times larger the largest class is than the smallest that has rows."""
    present = [rows for rows in classes.values() if rows]
    return max(present) / min(present) if present else None


def label_hygiene(counts: Mapping[Split, Mapping[str, int]]) -> Gate:
    """F10: every label that is configured, or that validation or test has, has a train row.

    `counts` are those of `class_counts`.
    """
    train = counts["train"]
    absent = [label for label, rows in train.items() if not rows]
    share, ratio = majority_share(train), imbalance(train)
    detail = f"{len(absent)} of {len(train)} labels have no train row"
    if absent:
        examples = ", ".join(_told(label, counts) for label in absent[:_EXAMPLES])
        more = ", ..." if len(absent) > _EXAMPLES else ""
        detail += f": {examples}{more}; give each of them train rows, or take it out of the data"
    elif share is not None and ratio is not None:
        detail += f"; the largest is {share:.1%} of them, {ratio:.1f} times the smallest"
    return check("label-hygiene", len(absent), "==", 0, detail)


def _told(label: str, counts: Mapping[Split, Mapping[str, int]]) -> str:
    elsewhere = [f"{counts[split][label]} {split}" for split in SPLITS if counts[split][label]]
    return f"'{label}' ({', '.join(elsewhere)} rows)" if elsewhere else f"'{label}'"
