"""Hashed words as word pairs, MinHash bands, n-grams; exact Jaccard similarity.

A batch of texts is one flat array of word hashes and a length a row, so that all work is NumPy
and Rust over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERMUTATIONS = 126
MISS_PROBABILITY = 1e-3  # of a pair exactly at the threshold, by chance of the permutations
_SEED = 1  # of the permutations: two runs must choose the same
_FACTOR = 0x9E3779B97F4A7C15  # odd, its bits at random: 2 ** 64 over the golden ratio
NO_ROW = 0  # band key of a row without words


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length one after another: `values`, and how many are each row's."""

    values: "NDArray[Any]"
    lengths: "NDArray[np.int64]"

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> "NDArray[np.int64]":
        """Where each row begins in `values`."""
        starts: NDArray[np.int64] = self.lengths.cumsum() - self.lengths
        return starts

    @cached_property
    def rows(self) -> "NDArray[np.int64]":
        """The row of each value."""
        import numpy as np

        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: "NDArray[np.int64]") -> "Ragged":
        """These rows, in the order asked for; one may be asked for twice."""
        return Ragged.cut(self.values, self.starts[rows], self.lengths[rows])

    @classmethod
    def cut(
        cls, values: "NDArray[Any]", starts: "NDArray[np.int64]", lengths: "NDArray[np.int64]"
    ) -> "Ragged":
        """A row for each stretch of `values`."""
        import numpy as np

        shift = starts - (lengths.cumsum() - lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
        return cls(values[places], lengths)

    def only(self, mask: "NDArray[np.bool_]") -> "Ragged":
        """The values that the mask says, in the rows they are in."""
        import numpy as np

        return Ragged(self.values[mask], np.bincount(self.rows[mask], minlength=len(self)))

    def sets(self) -> "Ragged":
        """Every row sorted, each of its values once."""
        import numpy as np

        order = self.values.argsort()
        small = np.uint16 if len(self) <= 1 << 16 else np.int64  # NumPy sorts 16 bits by radix
        order = order[self.rows[order].astype(small).argsort(kind="stable")]
        values = self.values[order]
        new = np.ones(len(values), dtype=np.bool_)
        new[1:] = (values[1:] != values[:-1]) | (self.rows[1:] != self.rows[:-1])
        return Ragged(values, self.lengths).only(new)


def joined(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all, in order."""
    import numpy as np

    return Ragged(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def side_by_side(left: Ragged, right: Ragged) -> Ragged:
    """Each row of `left` followed by the same row of `right`."""
    import numpy as np

    size = len(left)
    places = np.arange(2 * size).reshape(2, size).T.ravel()
    both = joined([left, right]).take(places)
    return Ragged(both.values, left.lengths + right.lengths)


def word_pairs(hashed: Ragged) -> Ragged:
    """A 64-bit hash of each two successive words; a row of one word has that one."""
    import numpy as np

    values = hashed.values.astype(np.uint64)
    paired = values << np.uint64(32)
    paired[:-1] |= values[1:]
    last = (hashed.starts + hashed.lengths - 1)[hashed.lengths > 0]
    paired[last] = ~values[last]  # not the pair of a word hashed to 0 and this one
    keep = np.ones(len(values), dtype=np.bool_)
    keep[last] = hashed.lengths[hashed.lengths > 0] == 1
    return Ragged(mix(paired), hashed.lengths).only(keep)


def n_grams(hashed: Ragged, size: int) -> "tuple[NDArray[np.uint64], NDArray[np.int64]]":
    """Hashes of each `size` successive words of a row, and the place of each one's first word."""
    import numpy as np

    windows = len(hashed.values) - size + 1
    if windows < 1:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    values = hashed.values.astype(np.uint64)
    total = values[:windows].copy()
    for offset in range(1, size):
        total *= np.uint64(_FACTOR)  # a polynomial modulo 2 ** 64, mixed below
        total += values[offset : offset + windows]
    places = np.flatnonzero(hashed.rows[:windows] == hashed.rows[size - 1 :])
    return mix(total[places]), places


def distinct(values: "NDArray[Any]") -> "NDArray[Any]":
    """Sorted, each once. By sorting: NumPy 2.4 hashes, which takes 20 times as long here."""
    import numpy as np

    values = np.sort(values)
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def mix(values: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    """Every bit depends on every bit, one to one: the finaliser of SplitMix64 (Steele 2014)."""
    import numpy as np

    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def banding(jaccard: float) -> tuple[int, int]:
    """Bands, and permutations in each: as many as still find a pair at the threshold.

    Two rows are compared when all permutations of some band agree: with probability
    1 - (1 - jaccard ** rows) ** bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
    3.4.2). At 0.8: 25 bands of 5, 0.99995.
    """
    rows = 1
    while (1 - jaccard ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) <= MISS_PROBABILITY:
        rows += 1
        if rows == PERMUTATIONS // 8:  # threshold 1: longer bands find no less, nor cost less
            break
    return PERMUTATIONS // rows, rows


def band_keys(pairs: Ragged, jaccard: float) -> "NDArray[np.uint64]":
    """A key for each band and row, shape (bands, rows); `NO_ROW` for rows without words."""
    import numpy as np

    bands, size = banding(jaccard)
    keys = np.zeros((bands, len(pairs)), dtype=np.uint64)
    for start in range(0, len(pairs), 2048):
        rows = np.arange(start, min(start + 2048, len(pairs)))
        signature = _signature(pairs.take(rows), bands * size).astype(np.uint64)
        for value in signature.reshape(len(rows), bands, size).transpose(2, 1, 0):
            keys[:, rows] = mix(keys[:, rows] + value + np.uint64(1))
    np.maximum(keys, 1, out=keys)
    keys[:, pairs.lengths == 0] = NO_ROW
    return keys


def sequence_keys(prompts: Ragged, replies: Ragged) -> "NDArray[np.uint64]":
    """A key a row, equal where all words of both are the same in the same order."""
    import numpy as np

    keys = np.zeros(len(prompts), dtype=np.uint64)
    for part in (prompts, replies):
        place = np.arange(len(part.values)) - np.repeat(part.starts, part.lengths)
        hashed = mix((place.astype(np.uint64) << np.uint64(32)) | part.values)
        total = np.append(np.uint64(0), hashed.cumsum(dtype=np.uint64))
        keys = mix(keys + total[part.starts + part.lengths] - total[part.starts])
    np.maximum(keys, 1, out=keys)
    keys[prompts.lengths + replies.lengths == 0] = NO_ROW
    return keys


def _signature(pairs: Ragged, permutations: int) -> "NDArray[np.uint32]":
    import numpy as np
    from rensa import RMinHash

    offsets = np.append(0, pairs.lengths.cumsum()).astype(np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        pairs.values, offsets, permutations, _SEED
    )
    # three times as fast as np.array of the lists
    flat = np.fromiter(
        chain.from_iterable(digests.to_rows()), np.uint32, len(pairs) * permutations
    )
    return flat.reshape(len(pairs), permutations)


def similarity(left: Ragged, right: Ragged) -> "NDArray[np.float64]":
    """Jaccard similarity of each row of `left` and of `right`: shared values over all values.

    Both are `sets()`. Two rows without words are not similar: 0.
    """
    import numpy as np

    kept = np.sort(_tagged(left))
    wanted = _tagged(right)
    place = np.searchsorted(kept, wanted)
    found = np.zeros(len(wanted), dtype=np.bool_)
    if len(kept):
        found = kept[np.minimum(place, len(kept) - 1)] == wanted
    shared = right.only(found).lengths
    return np.asarray(shared / np.maximum(left.lengths + right.lengths - shared, 1))


def _tagged(sets: Ragged) -> "NDArray[np.uint64]":
    """Values that differ between rows, so that one sorted array serves for all rows."""
    import numpy as np

    return mix(sets.values ^ mix(sets.rows.astype(np.uint64) + np.uint64(_FACTOR)))
