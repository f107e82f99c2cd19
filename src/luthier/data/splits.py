"""Seeded choices of rows: a share of train for another split, and at most so many of a split.

Rows are chosen in the order of a hash of seed and content, not of their place in a file: the
same rows in another order, or a few more of them, give (nearly) the same choice.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from luthier.data.rows import Ledger, Row, Split


def cut(rows: Sequence[Row], fractions: Mapping[Split, float], seed: int) -> list[Row]:
    """Move shares of the train rows to other splits. Every fraction is of train as it comes in.

    Rows of one group, or with one text, go together. Each class gives its share as nearly as
    whole groups allow; one that fits nowhere stays in train.
    """
    total = sum(row.split == "train" for row in rows)
    for split, fraction in fractions.items():
        rows = _cut_one(rows, split, round(fraction * total), seed)
    return list(rows)


def _cut_one(rows: Sequence[Row], into: Split, count: int, seed: int) -> list[Row]:
    train = [index for index, row in enumerate(rows) if row.split == "train"]
    missing = Counter(proportional_shares(Counter(rows[index].label for index in train), count))
    moved: set[int] = set()
    units = _units(rows, train)
    units.sort(key=lambda unit: _draw(seed, into, min(rows[index].id for index in unit)))
    for unit in units:
        counts = Counter(rows[index].label for index in unit)
        label = min(counts, key=lambda found: (-counts[found], str(found)))
        if counts[label] <= missing[label] and len(unit) + len(moved) <= count:
            missing.subtract(counts)
            moved.update(unit)
    return [replace(row, split=into) if i in moved else row for i, row in enumerate(rows)]


def limited(
    rows: Sequence[Row], limit: Mapping[Split, int], seed: int, ledger: Ledger
) -> list[Row]:
    """At most `limit[split]` rows of a split, each class in proportion; the others are dropped."""
    chosen: set[int] = set()
    for split in dict.fromkeys(row.split for row in rows):
        inside = [index for index, row in enumerate(rows) if row.split == split]
        if len(inside) <= limit.get(split, len(inside)):
            chosen.update(inside)
            continue
        missing = proportional_shares(Counter(rows[index].label for index in inside), limit[split])
        for index in sorted(inside, key=lambda i: _draw(seed, f"limit {split}", rows[i].id)):
            if missing[rows[index].label] > 0:
                missing[rows[index].label] -= 1
                chosen.add(index)
    ledger.drop("limit", len(rows) - len(chosen))
    return [row for index, row in enumerate(rows) if index in chosen]


def proportional_shares(sizes: Mapping[str | None, int], count: int) -> dict[str | None, int]:
    """`count` divided in proportion to `sizes` by largest remainder: sums to `count` exactly.

    No share exceeds its size as long as `count` is at most the sum of sizes.
    """
    total = sum(sizes.values())
    shares = {label: count * size // total for label, size in sizes.items()}
    by_remainder = sorted(
        sizes, key=lambda label: (-(count * sizes[label] % total), -sizes[label], str(label))
    )
    for label in by_remainder[: count - sum(shares.values())]:
        shares[label] += 1
    return shares


def _units(rows: Sequence[Row], indices: Sequence[int]) -> list[list[int]]:
    """Rows that must stay together, directly or through others: by group and by text."""
    parent = {index: index for index in indices}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index in indices:
        keys: list[Hashable] = [("text", rows[index].prompt_key)]
        if rows[index].group is not None:
            keys.append(("group", rows[index].group))
        for key in keys:
            parent[root(index)] = root(first.setdefault(key, index))
    units = defaultdict(list)
    for index in indices:
        units[root(index)].append(index)
    return list(units.values())


def _draw(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {row_id}".encode()).digest()
