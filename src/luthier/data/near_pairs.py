"""Which rows may be near copies (equal band keys), and which are (exact Jaccard similarity).

Candidates are found in the parent, a band at a time: some 25 bytes a row. Rows whose words are all
the same form a class and its first row stands for it. In a group of many rows with one key, a row
is compared with its neighbours and the group's first, so that thousands of rows of one template do
not cost the square of their number.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.data.hashed import Hashed, KeySet, distinctive
from luthier.data.shingles import NO_ROW, distinct, side_by_side, similarity, word_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

NEIGHBOURS = 4  # of a row on either side in a group
PAIRS_A_TASK = 4000
_STEP = 1 << 18  # rows looked up at a time
OUT = 255  # rank of a row that takes no part

Side = Literal["prompt", "whole"]


def pack(first: "NDArray[Any]", second: "NDArray[Any]") -> "NDArray[np.uint64]":
    """Pairs of row numbers (each below 2 ** 32) as one number each."""
    import numpy as np

    return (first.astype(np.uint64) << np.uint64(32)) | second.astype(np.uint64)


def unpack(pairs: "NDArray[np.uint64]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """What `pack` was given."""
    import numpy as np

    return (
        (pairs >> np.uint64(32)).astype(np.int64),
        (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64),
    )


def column(hashed: Hashed, side: Side, band: int) -> "NDArray[np.uint64]":
    """The keys of one band, of all rows; band -1 are the sequence keys."""
    import numpy as np

    keys = np.empty(hashed.ends[-1] if hashed.ends else 0, dtype=np.uint64)
    for part in range(hashed.parts):
        keys[hashed.span(part)] = np.load(hashed.file(f"{side}-keys", part), mmap_mode="r")[band]
    return keys


def representatives(
    sequence: "NDArray[np.uint64]", rank: "NDArray[np.uint8]"
) -> "NDArray[np.int64]":
    """For each row the first one of its rank that has the very same words."""
    import numpy as np

    first_of = np.arange(len(sequence))
    rows = _sharing(sequence, rank)
    if not len(rows):
        return first_of
    order = rows[np.lexsort((rows, rank[rows], sequence[rows]))]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (np.diff(sequence[order]) != 0) | (np.diff(rank[order]) != 0)
    first_of[order] = order[new][np.cumsum(new) - 1]
    return first_of


def _sharing(keys: "NDArray[np.uint64]", rank: "NDArray[np.uint8]") -> "NDArray[np.int64]":
    """Rows that take part and share their key with another such row."""
    import numpy as np

    ordered = keys[(rank != OUT) & (keys != NO_ROW)]
    ordered.sort()
    shared = KeySet.of(distinct(ordered[1:][ordered[1:] == ordered[:-1]]))
    del ordered
    steps = range(0, len(keys), _STEP)
    found = [shared.find(keys[start : start + _STEP])[0] + start for start in steps]
    rows = np.concatenate([np.empty(0, dtype=np.int64), *found])
    taking_part: NDArray[np.int64] = rows[rank[rows] != OUT]
    return taking_part


def candidates(
    hashed: Hashed, side: Side, bands: int, rank: "NDArray[np.uint8]", across: bool
) -> "NDArray[np.uint64]":
    """Packed pairs that share a band key, each once, sorted.

    `across`: of two ranks, the lower rank first; else of one rank, the lower number first.
    """
    import numpy as np

    found = np.empty(0, dtype=np.uint64)
    pair_up = _pairs_across if across else _pairs_within
    keys = column(hashed, side, -1)
    for band in range(-1, bands):
        rows = _sharing(keys, rank)
        own = keys[rows]
        keys = column(hashed, side, (band + 1) % bands)
        groups = _groups(rows, own, keys[rows], None if across else rank)
        found = distinct(np.append(found, pair_up(*groups, rank)))
    return found


def _groups(
    rows: "NDArray[np.int64]",
    keys: "NDArray[np.uint64]",
    then: "NDArray[np.uint64]",
    rank: "NDArray[np.uint8] | None",
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Rows group by group, and the number of their group: of one key, and of one rank if given.

    Within a group by the next band's key: rows most alike stand together.
    """
    import numpy as np

    ranks = np.zeros(len(rows), dtype=np.uint8) if rank is None else rank[rows]
    order = np.lexsort((rows, then, keys, ranks))
    new = (np.diff(keys[order]) != 0) | (np.diff(ranks[order]) != 0)
    return rows[order], np.append(0, np.cumsum(new))[: len(rows)]


def _pairs_within(
    rows: "NDArray[np.int64]",
    group: "NDArray[np.int64]",
    rank: "NDArray[np.uint8]",  # noqa: ARG001, groups are of one rank
) -> "NDArray[np.uint64]":
    import numpy as np

    if not len(rows):
        return np.empty(0, dtype=np.uint64)
    firsts = np.minimum.reduceat(rows, np.flatnonzero(np.diff(group, prepend=-1)))[group]
    others = rows != firsts
    found = [pack(firsts[others], rows[others])]
    for shift in range(1, NEIGHBOURS + 1):
        same = group[shift:] == group[:-shift]
        left, right = rows[shift:][same], rows[:-shift][same]
        found.append(pack(np.minimum(left, right), np.maximum(left, right)))
    return distinct(np.concatenate(found))


def _pairs_across(
    rows: "NDArray[np.int64]", group: "NDArray[np.int64]", rank: "NDArray[np.uint8]"
) -> "NDArray[np.uint64]":
    import numpy as np

    found = [np.empty(0, dtype=np.uint64)]
    ranks = rank[rows]
    for high in np.unique(ranks)[1:]:
        highs, lows = np.flatnonzero(ranks == high), np.flatnonzero(ranks < high)
        lows = lows[np.isin(group[lows], group[highs])]
        place = np.searchsorted(highs, lows)
        for shift in range(-NEIGHBOURS, NEIGHBOURS):
            inside = (place + shift >= 0) & (place + shift < len(highs))
            low, partner = lows[inside], highs[(place + shift)[inside]]
            same = group[low] == group[partner]
            found.append(pack(rows[low[same]], rows[partner[same]]))
    return distinct(np.concatenate(found))


@dataclass(frozen=True)
class PairTask:
    """Packed pairs to measure. `replies_too`: pairs whose replies must be similar as well."""

    hashed: Hashed
    side: Side
    pairs: "NDArray[np.uint64]"
    common: "NDArray[np.uint64]"
    replies_too: "NDArray[np.bool_]"


def measure(task: PairTask) -> "NDArray[np.float64]":
    """The exact Jaccard similarity of each pair; the lesser, where replies count too."""
    import numpy as np

    rows, places = np.unique(np.concatenate(unpack(task.pairs)), return_inverse=True)
    left, right = places[: len(task.pairs)], places[len(task.pairs) :]
    prompts, replies = task.hashed.fetch(rows)
    words = prompts if task.side == "prompt" else side_by_side(prompts, replies)
    sets = distinctive(word_pairs(words), task.common).sets()
    found = similarity(sets.take(left), sets.take(right))
    strict = np.flatnonzero(task.replies_too)
    if len(strict):
        answers = word_pairs(replies).sets()
        answered = similarity(answers.take(left[strict]), answers.take(right[strict]))
        found[strict] = np.minimum(found[strict], answered)
    return found


@dataclass(frozen=True)
class Measured:
    """Pairs found: a row, the one it repeats, how similar (NaN: a run of words, not measured)."""

    first: "NDArray[np.int64]"
    second: "NDArray[np.int64]"
    similarity: "NDArray[np.float64]"

    @classmethod
    def none(cls) -> "Measured":
        """No pairs."""
        import numpy as np

        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def only(self, mask: "NDArray[np.bool_]") -> "Measured":
        """The pairs that the mask says."""
        return Measured(self.first[mask], self.second[mask], self.similarity[mask])

    def joined(self, other: "Measured") -> "Measured":
        """The pairs of both."""
        import numpy as np

        return Measured(
            np.append(self.first, other.first),
            np.append(self.second, other.second),
            np.append(self.similarity, other.similarity),
        )

    def best(self) -> "Measured":
        """Of each first row the most similar pair; of equal ones that with the lowest number."""
        import numpy as np

        order = np.lexsort((self.second, -self.similarity, self.first))  # NaN comes last
        _, chosen = np.unique(self.first[order], return_index=True)
        return Measured(
            self.first[order][chosen], self.second[order][chosen], self.similarity[order][chosen]
        )

    def for_all_of(self, first_of: "NDArray[np.int64]") -> "Measured":
        """What is true of a representative, for every row that it stands for.

        Each first row stands here once and they ascend, as after `best`.
        """
        import numpy as np

        place = np.searchsorted(self.first, first_of)
        place[place == len(self.first)] = 0
        rows = np.flatnonzero(self.first[place] == first_of) if len(self.first) else self.first
        return Measured(rows, self.second[place[rows]], self.similarity[place[rows]])


def reaching(
    pairs: "NDArray[np.uint64]", found: "Sequence[NDArray[np.float64]]", jaccard: float
) -> Measured:
    """The pairs whose similarity, measured task by task, reaches the threshold."""
    import numpy as np

    similarity = np.concatenate([*found, np.empty(0)])
    near = similarity >= jaccard
    return Measured(*unpack(pairs[near]), similarity[near])
