"""Draws: a seeded order of rows, and the units that fit into a share when taken in that order."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def draws(keys: "NDArray[np.uint64]", seed: int, purpose: str) -> "NDArray[np.uint64]":
    """A pseudo-random number for each key: different keys have different ones.

    splitmix64 (Steele, Lea and Flood 2014; the constants are of Vigna's splitmix64.c) of the key
    and a hash of seed and purpose.
    """
    import numpy as np

    salt = int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big")
    z = keys ^ np.uint64(salt)
    z += np.uint64(0x9E3779B97F4A7C15)  # arrays wrap modulo 2 ** 64
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def drawn(
    stratum: "NDArray[np.int32]",
    draw: "NDArray[np.uint64]",
    sizes: "NDArray[np.int32]",
    shares: Sequence[int],
) -> "NDArray[np.bool_]":
    """Of each stratum the units, in the order of their draw, that fit into its share of rows."""
    import numpy as np

    order = np.argsort(draw, kind="stable")
    order = order[np.argsort(stratum[order], kind="stable")]
    ends = np.cumsum(np.bincount(stratum, minlength=len(shares)))
    chosen = np.zeros(len(stratum), dtype=np.bool_)
    for start, end, share in zip([0, *ends[:-1]], ends, shares, strict=True):
        for units in that_fit(order[start:end], sizes, share):
            chosen[units] = True
    return chosen


def that_fit(
    order: "NDArray[np.int64]", sizes: "NDArray[np.int32]", room: int
) -> "Iterator[NDArray[np.int64]]":
    """The units that are taken when each goes in, in this order, if it still fits."""
    import numpy as np

    while room and len(order):  # mostly once for each size that occurs: what fits shrinks
        order = order[sizes[order] <= room]
        total = np.cumsum(sizes[order[:room]])
        fitting = int(np.searchsorted(total, room, side="right"))
        if fitting:
            yield order[:fitting]
            room -= int(total[fitting - 1])
        order = order[fitting:]


def proportional_shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided in proportion to `sizes` by largest remainder: sums to `count` exactly.

    No share exceeds its size as long as `count` is at most the sum of sizes. Of equal remainders
    the larger size comes first, then the first.
    """
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(
        range(len(sizes)), key=lambda place: (-(count * sizes[place] % total), -sizes[place])
    )
    for place in by_remainder[: count - sum(shares)]:
        shares[place] += 1
    return shares
