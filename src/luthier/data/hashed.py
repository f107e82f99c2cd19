"""The hashed words of all rows, on the disk: what the search for near copies works on.

Four bytes a word in a scratch folder, one group of files a part; whoever needs some rows maps the
files and copies out those rows alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.data.shingles import (
    Ragged,
    band_keys,
    joined,
    mix,
    sequence_keys,
    side_by_side,
    word_pairs,
)
from luthier.data.words import hash_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Texts(Protocol):
    """Texts in numbered parts, to be pickled for worker processes: how to get them, not they.

    Rows are numbered through all parts in order.
    """

    @property
    def parts(self) -> int:
        """How many parts there are."""

    def prompts(self, part: int) -> list[str]:
        """What each row asks: the user's side before the reply, without the system message.

        Of rows that ask nothing (plain text to continue), all of the text.
        """

    def replies(self, part: int) -> list[str]:
        """What each row answers, of a preference both replies; empty where there is nothing."""

    def place(self, part: int, row: int) -> str:
        """`file:line` of a row, counted from 0 within its part."""


class KeySet:
    """Sorted 64-bit hashes, and a table that says of most others at once that they are not in."""

    def __init__(self, values: "NDArray[np.uint64]", table: "NDArray[np.bool_]") -> None:
        self.values, self._table = values, table
        self._shift = 64 - (len(table).bit_length() - 1)

    @classmethod
    def of(cls, values: "NDArray[np.uint64]") -> "KeySet":
        """From sorted values, each once."""
        import numpy as np

        bits = min(max((16 * len(values)).bit_length(), 12), 26)  # one in 16 passes by chance
        table = np.zeros(1 << bits, dtype=np.bool_)
        table[values >> np.uint64(64 - bits)] = True
        return cls(values, table)

    def save(self, stem: Path) -> None:
        """Write for `load`, in two files."""
        import numpy as np

        np.save(stem.with_suffix(".values.npy"), self.values)
        np.save(stem.with_suffix(".table.npy"), self._table)

    @classmethod
    def load(cls, stem: Path) -> "KeySet":
        """Map what `save` wrote: processes share the memory."""
        import numpy as np

        values, table = (
            np.load(stem.with_suffix(f".{name}.npy"), mmap_mode="r")
            for name in ("values", "table")
        )
        return cls(values, table)

    def find(self, wanted: "NDArray[np.uint64]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Which of `wanted` are in the set, and their places in `values`."""
        import numpy as np

        maybe = np.flatnonzero(self._table[wanted >> np.uint64(self._shift)])
        place = np.searchsorted(self.values, wanted[maybe])
        found = np.zeros(len(maybe), dtype=np.bool_)
        inside = place < len(self.values)
        found[inside] = self.values[place[inside]] == wanted[maybe[inside]]
        return maybe[found], place[found]


@dataclass(frozen=True)
class Hashed:
    """The scratch folder and, a part, the number one past its last row."""

    folder: Path
    ends: tuple[int, ...] = ()

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self.ends)

    def span(self, part: int) -> slice:
        """The numbers of a part's rows."""
        return slice(self.ends[part - 1] if part else 0, self.ends[part])

    def file(self, name: str, part: int) -> Path:
        """Where something about a part is kept."""
        return self.folder / f"{name}-{part}.npy"

    def part(self, number: int) -> tuple[Ragged, Ragged]:
        """Word hashes of all prompts of a part, and of all replies."""
        return self._load("prompt", number), self._load("reply", number)

    def _load(self, name: str, part: int) -> Ragged:
        import numpy as np

        values = np.load(self.file(f"{name}-words", part), mmap_mode="r")
        return Ragged(values, np.load(self.file(f"{name}-lengths", part)).astype(np.int64))

    def fetch(self, rows: "NDArray[np.int64]") -> tuple[Ragged, Ragged]:
        """Word hashes of these rows' prompts and replies, in the order asked for."""
        import numpy as np

        part_of = np.searchsorted(np.array(self.ends), rows, side="right")
        order = np.argsort(part_of, kind="stable")
        found: list[tuple[Ragged, Ragged]] = []
        for part in np.unique(part_of):
            inside = rows[part_of == part] - self.span(int(part)).start
            prompts, replies = self.part(int(part))
            found.append((prompts.take(inside), replies.take(inside)))
        back = np.empty(len(rows), dtype=np.int64)
        back[order] = np.arange(len(rows))
        prompts, replies = (joined(side).take(back) for side in zip(*found, strict=True))
        return prompts, replies


@dataclass(frozen=True)
class HashTask:
    """A part of `texts`, and what number it gets among all parts."""

    texts: Texts
    part: int
    number: int
    hashed: Hashed


def hash_part(task: HashTask) -> int:
    """Write the hashed words of a part; how many rows it has."""
    import numpy as np

    sides = {
        "prompt": hash_words(task.texts.prompts(task.part)),
        "reply": hash_words(task.texts.replies(task.part)),
    }
    for name, side in sides.items():
        np.save(task.hashed.file(f"{name}-words", task.number), side.values)
        np.save(task.hashed.file(f"{name}-lengths", task.number), side.lengths.astype(np.uint32))
    return len(sides["prompt"])


@dataclass(frozen=True)
class KeyTask:
    """A part to be given band keys. `least_words`: shorter prompts get none."""

    hashed: Hashed
    part: int
    common: "NDArray[np.uint64]"
    jaccard: float
    least_words: int


def key_part(task: KeyTask) -> None:
    """Write the band keys of a part, and a last row with the sequence keys; of prompts, of all."""
    import numpy as np

    prompts, replies = task.hashed.part(task.part)
    nothing = Ragged(replies.values[:0], np.zeros_like(replies.lengths))
    whole = side_by_side(prompts, replies)
    for name, words, answers in (("prompt", prompts, nothing), ("whole", whole, replies)):
        pairs = distinctive(word_pairs(words), task.common)
        asked = prompts if name == "whole" else words
        keys = np.vstack([band_keys(pairs, task.jaccard), sequence_keys(asked, answers)])
        keys[:, words.lengths < task.least_words] = 0
        np.save(task.hashed.file(f"{name}-keys", task.part), keys)


def distinctive(pairs: Ragged, common: "NDArray[np.uint64]") -> Ragged:
    """Without the common pairs, except in rows that have no others."""
    import numpy as np

    if not len(common):
        return pairs
    keep = np.ones(len(pairs.values), dtype=np.bool_)
    keep[KeySet.of(common).find(pairs.values)[0]] = False
    nothing_left = np.bincount(pairs.rows[keep], minlength=len(pairs)) == 0
    return pairs.only(keep | nothing_left[pairs.rows])


COMMON_SHARE = 0.2  # of a source's rows: the words of a template, not of one text
COMMON_LEAST_ROWS = 50  # of fewer rows, copies of one another could be taken for a template
_SAMPLED_ROWS = 200  # a source: a share of 0.2 is then known to 0.03


def common_pairs(
    hashed: Hashed, source: "NDArray[Any]", usable: "NDArray[np.bool_]"
) -> "NDArray[np.uint64]":
    """Word pairs in more than `COMMON_SHARE` of some source's rows: those of its template.

    A prompt of 90 words of instruction and 10 of text is 0.9 similar to any other. So what most
    rows have in common does not count; it can only make two rows less similar. Shares are those
    of rows evenly spaced through the source.
    """
    import numpy as np

    found = []
    for number in np.unique(source[usable]):
        rows = np.flatnonzero(usable & (source == number))
        if len(rows) < COMMON_LEAST_ROWS:
            continue
        picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).astype(int)]
        sets = word_pairs(side_by_side(*hashed.fetch(picked))).sets()
        values, counts = np.unique(sets.values, return_counts=True)
        found.append(values[counts > COMMON_SHARE * len(picked)])
    return np.unique(np.concatenate([*found, np.empty(0, dtype=np.uint64)]))


def pair_hashes(words: Ragged) -> "NDArray[np.uint64]":
    """As `word_pairs`, one for every place but the last, across the ends of rows too."""
    import numpy as np

    values = words.values.astype(np.uint64)
    return mix((values[:-1] << np.uint64(32)) | values[1:])
