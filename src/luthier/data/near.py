"""Near copies: within a split, across splits, and of benchmarks.

    words of all rows, hashed, on the disk     (worker processes, a part at a time)
    band keys of MinHash signatures            (worker processes)
    candidates that share a key, band by band  (here)
    exact Jaccard similarity of candidates     (worker processes)
    runs of 13 words shared with higher splits (worker processes, counted here)

Two texts are as similar as the share of word pairs that they have in common, without the pairs
that a fifth of a source's rows have (templates). Across splits and with benchmarks it is prompts
that are compared: a row whose prompt nearly stands in a higher split leaves, whatever its reply.
Within a split it is prompt and reply together, and the replies must be the same or as similar
too: "set the light to 40 %" and "... 45 %" with their two targets teach two things.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from luthier.config import Field, Section
from luthier.data import near_grams, near_pairs
from luthier.data.contamination import LEAST_WORDS, BenchmarkTexts, ContaminationFile
from luthier.data.hashed import Hashed, HashTask, KeyTask, Texts, common_pairs, hash_part, key_part
from luthier.data.index import Fate, RowIndex
from luthier.data.near_examples import Kind, examples
from luthier.data.near_pairs import OUT, Measured, PairTask, Side
from luthier.data.shingles import banding
from luthier.data.summary import NearCounts
from luthier.data.workers import Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NearSection", "Texts", "Work", "search"]

OnLeak = Literal["drop", "fail"]
Result = TypeVar("Result")


class NearSection(Section):
    """What counts as nearly the same text, and what happens to it."""

    enabled: bool = Field(True, description="whether near copies are searched for")
    jaccard: float = Field(
        0.8, ge=0.5, le=1.0, description="share of word pairs in common that makes a near copy"
    )
    ngram_words: int = Field(
        13,
        ge=8,
        le=100,
        description="so many words in a row, shared with another split, are a leak",
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep", description="near copies within a split: keep and count them, or drop all but one"
    )


@dataclass(frozen=True)
class Work:
    """Who works where: processes, an empty folder, and who hears of a step, done and total.

    The folder takes 4 bytes a word, 450 a row, and 12 a word of validation and test prompts.
    """

    pool: Workers
    scratch: Path
    progress: Callable[[str, int, int], None] = lambda _label, _done, _total: None


def search(
    texts: Texts,
    index: RowIndex,
    section: NearSection,
    contamination: Sequence[ContaminationFile],
    on_leak: OnLeak,
    work: Work,
) -> NearCounts:
    """Find near copies among the rows still kept, and give those that leave their fate.

    The rows and counts are the same for any number of processes and any size of parts. With
    `on_leak` "fail" leaks and contaminated rows stay in and are only counted. Validation and test
    rows that a benchmark has stay in always. What is left in `work.scratch` is of no more use.

    Raises:
        DataError: a contamination file cannot be used.
    """
    return _Search(texts, index, section, BenchmarkTexts(contamination), work).run(on_leak)


class _Search:
    def __init__(
        self,
        texts: Texts,
        index: RowIndex,
        section: NearSection,
        benchmarks: BenchmarkTexts,
        work: Work,
    ) -> None:
        import numpy as np

        self.texts, self.index, self.section = texts, index, section
        self.benchmarks, self.work = benchmarks, work
        self.hashed = self._hash()
        own = np.where(index.kept, index.split, OUT)
        others = self.hashed.ends[-1] - len(index) if self.hashed.ends else 0
        self.rank = np.append(own, np.full(others, near_grams.BENCHMARK)).astype(np.uint8)
        self.common = common_pairs(self.hashed, index.source, index.kept)
        self._make_keys()

    def run(self, on_leak: OnLeak) -> NearCounts:
        """Look, decide, count."""
        rows = int(self.index.kept.sum())
        found = self._decide(on_leak)
        found["near-duplicate"] = self._within()
        if self.section.near_duplicates == "drop":
            self.index.leave(found["near-duplicate"].first, Fate.NEAR_DUPLICATE)
        return NearCounts(
            jaccard=self.section.jaccard,
            rows=rows,
            near_duplicates=len(found["near-duplicate"].first),
            leaks=len(found["leak-near"].first),
            ngram_leaks=len(found["leak-ngram"].first),
            contaminated=self._by_file(found["contaminated"]),
            examples=examples(found, self.hashed, self.texts, self.benchmarks),
        )

    def _decide(self, on_leak: OnLeak) -> dict[Kind, Measured]:
        """Which rows copy a benchmark or leak, judged on all rows as they came in.

        A row that leaves counts once. Such rows take no part in the search within splits, whether
        they do leave or are only counted.
        """
        import numpy as np

        leaks, copied = self._across()
        copied = copied.joined(self._runs("benchmarks")).best()
        train = self.rank[copied.first] == 0
        gone = np.zeros(len(self.index), dtype=np.bool_)
        gone[copied.first[train]] = True
        leaks = leaks.only(~gone[leaks.first])
        gone[leaks.first] = True
        runs = self._runs("splits")
        runs = runs.only(~gone[runs.first])
        gone[runs.first] = True
        if on_leak == "drop":
            self.index.leave(copied.first[train], Fate.CONTAMINATED)
            self.index.leave(leaks.first, Fate.LEAK_NEAR)
            self.index.leave(runs.first, Fate.LEAK_NGRAM)
        self.rank[: len(self.index)][gone] = OUT
        return {"contaminated": copied, "leak-near": leaks, "leak-ngram": runs}

    def _hash(self) -> Hashed:
        import numpy as np

        sides: list[tuple[Texts, int]] = [(self.texts, part) for part in range(self.texts.parts)]
        sides += [(self.benchmarks, part) for part in range(self.benchmarks.parts)]
        hashed = Hashed(self.work.scratch)
        tasks = [HashTask(*side, number, hashed) for number, side in enumerate(sides)]
        sizes = list(self._told("words of rows", self.work.pool.map(hash_part, tasks), len(tasks)))
        self.benchmarks.check(sizes[self.texts.parts :])
        if sum(sizes[: self.texts.parts]) != len(self.index):
            raise ValueError(f"texts of other rows than the {len(self.index)} of the index")
        return Hashed(self.work.scratch, tuple(np.cumsum(sizes).tolist()))

    def _make_keys(self) -> None:
        own = self.texts.parts
        tasks = [
            KeyTask(
                self.hashed,
                part,
                self.common,
                self.section.jaccard,
                1 if part < own else LEAST_WORDS,
            )
            for part in range(self.hashed.parts)
        ]
        for _ in self._told("signatures", self.work.pool.map(key_part, tasks), len(tasks)):
            pass

    def _across(self) -> tuple[Measured, Measured]:
        """Rows nearly in a higher split, and rows nearly in a benchmark, each with that other."""
        import numpy as np

        first_of = near_pairs.representatives(
            near_pairs.column(self.hashed, "prompt", -1), self.rank
        )
        alone = np.where(first_of == np.arange(len(first_of)), self.rank, OUT).astype(np.uint8)
        pairs = self._candidates("prompt", alone, across=True)
        near = self._verified("prompt", pairs, np.zeros(len(pairs), dtype=np.bool_))
        benchmark = near.second >= len(self.index)
        leaks, copies = (near.only(mask).best() for mask in (~benchmark, benchmark))
        return leaks.for_all_of(first_of), copies.for_all_of(first_of)

    def _runs(self, against: near_grams.Against) -> Measured:
        """Rows that share a run of words, and one that each shares it with."""
        import numpy as np

        if not (self.benchmarks if against == "benchmarks" else self.hashed).parts:
            return Measured.none()
        tasks = [
            near_grams.GramTask(
                self.hashed,
                part,
                self.rank[self.hashed.span(part)],
                self.section.ngram_words,
                self.common,
                against,
            )
            for part in range(self.hashed.parts)
        ]
        first, second = near_grams.shared_runs(tasks, self.rank, self.work.pool)
        return Measured(first, second, np.full(len(first), np.nan))

    def _by_file(self, copied: Measured) -> dict[str, int]:
        import numpy as np

        ends = np.array(self.hashed.ends)
        parts = np.searchsorted(ends, copied.second, side="right") - self.texts.parts
        counts = {
            self.benchmarks.path(part).as_posix(): 0 for part in range(self.benchmarks.parts)
        }
        for part, count in zip(*np.unique(parts, return_counts=True), strict=True):
            counts[self.benchmarks.path(int(part)).as_posix()] += int(count)
        return counts

    def _within(self) -> Measured:
        """Later rows of a split and an earlier one that each nearly repeats."""
        import numpy as np

        first_of = near_pairs.representatives(
            near_pairs.column(self.hashed, "whole", -1), self.rank
        )
        later = np.flatnonzero(first_of != np.arange(len(first_of)))
        same = Measured(later, first_of[later], np.ones(len(later)))
        splits = self.rank < near_grams.BENCHMARK
        alone = np.where(splits & (first_of == np.arange(len(first_of))), self.rank, OUT)
        pairs = self._candidates("whole", alone.astype(np.uint8), across=False)
        left, right = near_pairs.unpack(pairs)
        differ = self.index.target_key[left] != self.index.target_key[right]
        never = (self.index.label[left] != self.index.label[right]) | (
            differ & ((self.index.mirror_key[left] != 0) | (self.index.mirror_key[right] != 0))
        )
        near = self._verified("whole", pairs[~never], differ[~never])
        turned = Measured(near.second, near.first, near.similarity)
        return same.only(splits[later]).joined(turned).best()

    def _candidates(
        self, side: Side, rank: "NDArray[np.uint8]", across: bool
    ) -> "NDArray[np.uint64]":
        bands = banding(self.section.jaccard)[0]
        return near_pairs.candidates(self.hashed, side, bands, rank, across)

    def _verified(
        self, side: Side, pairs: "NDArray[np.uint64]", replies_too: "NDArray[np.bool_]"
    ) -> Measured:
        size = near_pairs.PAIRS_A_TASK
        starts = range(0, len(pairs), size)
        tasks = [
            PairTask(
                self.hashed, side, pairs[at : at + size], self.common, replies_too[at : at + size]
            )
            for at in starts
        ]
        measured = self.work.pool.map(near_pairs.measure, tasks)
        found = list(self._told("pairs of rows", measured, len(tasks)))
        return near_pairs.reaching(pairs, found, self.section.jaccard)

    def _told(self, label: str, results: Iterator[Result], total: int) -> Iterator[Result]:
        """The results, each counted aloud."""
        for done, result in enumerate(results, start=1):
            self.work.progress(label, done, total)
            yield result
