"""Rows in memory for the search for near copies, and changes that leave a text nearly the same."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from luthier.data.contamination import ContaminationFile
from luthier.data.index import NO_LABEL, RowIndex, make_index
from luthier.data.near import NearSection, OnLeak, Work, search
from luthier.data.rows import SPLITS, Split
from luthier.data.summary import NearCounts
from luthier.data.workers import Workers


@dataclass(frozen=True)
class Case:
    """One row."""

    split: Split
    prompt: str
    reply: str = ""
    label: int = NO_LABEL
    source: int = 0
    mirror: str = ""


@dataclass(frozen=True)
class Memory:
    """Texts in parts of `size` rows."""

    rows: Sequence[Case]
    size: int = 1000

    @property
    def parts(self) -> int:
        return -(-len(self.rows) // self.size)

    def _part(self, part: int) -> Sequence[Case]:
        return self.rows[part * self.size : (part + 1) * self.size]

    def prompts(self, part: int) -> list[str]:
        return [row.prompt for row in self._part(part)]

    def replies(self, part: int) -> list[str]:
        return [row.reply for row in self._part(part)]

    def place(self, part: int, row: int) -> str:
        return f"rows.jsonl:{part * self.size + row + 1}"


def index_of(rows: Sequence[Case]) -> RowIndex:
    return make_index(
        {
            "id_key": range(1, len(rows) + 1),
            "target_key": [crc32(row.reply.encode()) for row in rows],
            "mirror_key": [crc32(row.mirror.encode()) for row in rows],
            "label": [row.label for row in rows],
            "split": [SPLITS.index(row.split) for row in rows],
            "source": [row.source for row in rows],
        },
        [],
    )


def nothing() -> None:
    """Workers need no setting up."""


def searched(
    rows: Sequence[Case],
    folder: Path,
    section: NearSection | None = None,
    contamination: Sequence[ContaminationFile] = (),
    on_leak: OnLeak = "drop",
    size: int = 1000,
    processes: int = 1,
    index: RowIndex | None = None,
) -> tuple[RowIndex, NearCounts]:
    """The index after the search, and what it counted."""
    index = index or index_of(rows)
    section = section or NearSection(near_duplicates="drop")
    scratch = folder / f"scratch-{on_leak}-{size}-{processes}-{len(list(folder.iterdir()))}"
    scratch.mkdir()
    with Workers(processes, nothing) as pool:
        work = Work(pool, scratch)
        counts = search(Memory(rows, size), index, section, contamination, on_leak, work)
    return index, counts


def vocabulary(seed: int = 0, count: int = 3000) -> list[str]:
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(count)]


def text_of(draw: random.Random, known: Sequence[str], count: int) -> str:
    return " ".join(draw.choices(known, k=count))


def one_word_in_twenty(text: str) -> str:
    found = text.split()
    for place in range(10, len(found), 20):
        found[place] = f"other{place}"
    return " ".join(found)


CHANGES: dict[str, Callable[[str], str]] = {
    "case": str.upper,
    "punctuation": lambda text: text.replace(" ", ", ", 3) + "!",
    "white space": lambda text: "  " + text.replace(" ", "\n\t "),
    "one word in twenty": one_word_in_twenty,
    "full-width letters": lambda text: text.translate({c: c + 0xFEE0 for c in range(97, 123)}),
}
