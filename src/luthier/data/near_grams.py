"""Runs of 13 words that a row shares with a higher split or a benchmark.

After GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): a collision is 13 successive words,
case and punctuation aside; such runs in more than 10 training documents are ignored, being
"common cultural phrases, legal boilerplate" and the like. Exactly: a row of one split shares a
run that stands in a higher split's prompts (validation above train, test above both) or in a
benchmark. Of the row, the prompt counts against splits, and prompt and reply against benchmarks.
Ignored is a run that more than `COMMON_ROWS` rows of that row's own split share in this way, and
one of which more than `TEMPLATE_PAIRS` of its 12 word pairs are common to the rows of a source.
Unlike GPT-3 the whole row leaves, not the 200 characters around: rows here are short.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.data.hashed import Hashed, KeySet, pair_hashes
from luthier.data.near_pairs import pack, unpack
from luthier.data.shingles import Ragged, distinct, n_grams, side_by_side
from luthier.data.workers import Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Against = Literal["splits", "benchmarks"]

COMMON_ROWS = 10
TEMPLATE_PAIRS = 3
BENCHMARK = 3  # rank of a benchmark's texts, above the splits 0, 1, 2
_BLOCK = 4_000_000  # runs looked for at a time, 200 MB in the parent while they are sorted


@dataclass(frozen=True)
class GramTask:
    """A part whose runs of `size` words are wanted, the ranks of its rows, whose runs count."""

    hashed: Hashed
    part: int
    rank: "NDArray[np.uint8]"
    size: int
    common: "NDArray[np.uint64]"
    against: Against


def collect(task: GramTask) -> int:
    """Write the runs of the prompts that others must not share, with their rows; how many."""
    import numpy as np

    if task.against == "benchmarks":
        rows = np.flatnonzero(task.rank == BENCHMARK)
    else:
        rows = np.flatnonzero((task.rank > 0) & (task.rank < BENCHMARK))
    prompts = task.hashed.part(task.part)[0].take(rows)
    grams, places = _grams(prompts, task)
    np.save(task.hashed.file("grams", task.part), grams)
    numbers = (rows + task.hashed.span(task.part).start)[prompts.rows[places]]
    np.save(task.hashed.file("gram-rows", task.part), numbers.astype(np.uint32))
    return len(grams)


def _grams(words: Ragged, task: GramTask) -> "tuple[NDArray[np.uint64], NDArray[np.int64]]":
    import numpy as np

    grams, places = n_grams(words, task.size)
    if not len(task.common) or not len(grams):
        return grams, places
    template = np.zeros(len(words.values), dtype=np.int64)
    template[KeySet.of(task.common).find(pair_hashes(words))[0] + 1] = 1
    before = template.cumsum()  # pairs of a template that end here or earlier
    own = before[places + task.size - 1] - before[places] <= TEMPLATE_PAIRS
    return grams[own], places[own]


def hits(task: GramTask) -> int:
    """Write which runs of the block a part's rows share, each once a row; how many."""
    import numpy as np

    keys = KeySet.load(task.hashed.folder / "block")
    gram_rank = np.load(task.hashed.folder / "block-rank.npy", mmap_mode="r")
    rows = np.flatnonzero(task.rank < BENCHMARK)
    prompts, replies = (side.take(rows) for side in task.hashed.part(task.part))
    words = prompts if task.against == "splits" else side_by_side(prompts, replies)
    grams, places = _grams(words, task)
    found, gram = keys.find(grams)
    row = rows[words.rows[places[found]]]
    counts = gram_rank[gram] > task.rank[row]
    number = row[counts] + task.hashed.span(task.part).start
    packed = distinct(pack(gram[counts], number))
    np.save(task.hashed.file("hits", task.part), packed)
    return len(packed)


def shared_runs(
    tasks: Sequence[GramTask],
    rank: "NDArray[np.uint8]",
    pool: Workers,
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Rows that share a run, in order, and for each the first row of highest rank it shares with.

    `tasks` has every part once, `rank` is of all rows.
    """
    import numpy as np

    hashed = tasks[0].hashed
    counts = list(pool.map(collect, tasks))
    found = [np.empty(0, dtype=np.uint64)]
    for parts in _blocks(counts):
        _write_block(hashed, parts, rank)
        for _ in pool.map(hits, tasks):
            pass
        found.append(_decide(hashed, rank))
    first, second = unpack(np.concatenate(found))
    order = np.lexsort((second, BENCHMARK - rank[second], first))
    rows, best = np.unique(first[order], return_index=True)
    return rows, second[order][best]


def _blocks(counts: Sequence[int]) -> Iterator[list[int]]:
    """Parts whose runs are looked for together."""
    block: list[int] = []
    total = 0
    for part, count in enumerate(counts):
        if count and total and total + count > _BLOCK:
            yield block
            block, total = [], 0
        if count:
            block.append(part)
            total += count
    if block:
        yield block


def _write_block(hashed: Hashed, parts: Sequence[int], rank: "NDArray[np.uint8]") -> None:
    """The runs of these parts, each with the first row of the highest rank that has it."""
    import numpy as np

    grams, rows = (
        np.concatenate([np.load(hashed.file(name, part)) for part in parts])
        for name in ("grams", "gram-rows")
    )
    order = np.argsort(BENCHMARK - rank[rows], kind="stable")
    values, first = np.unique(grams[order], return_index=True)
    KeySet.of(values).save(hashed.folder / "block")
    np.save(hashed.folder / "block-rows.npy", rows[order][first])
    np.save(hashed.folder / "block-rank.npy", rank[rows[order][first]])


def _decide(hashed: Hashed, rank: "NDArray[np.uint8]") -> "NDArray[np.uint64]":
    """Packed pairs of rows that share a run of the block that is not common."""
    import numpy as np

    because = np.load(hashed.folder / "block-rows.npy")
    counts = np.zeros((BENCHMARK, len(because)), dtype=np.uint32)
    files = [hashed.file("hits", part) for part in range(hashed.parts)]
    for file in files:
        gram, row = unpack(np.load(file))
        np.add.at(counts, (rank[row], gram), 1)
    found = [np.empty(0, dtype=np.uint64)]
    for file in files:
        gram, row = unpack(np.load(file))
        rare = counts[rank[row], gram] <= COMMON_ROWS
        found.append(distinct(pack(row[rare], because[gram[rare]])))
    return np.concatenate(found)
