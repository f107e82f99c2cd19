"""Looking into the spool: the texts of its rows, and where rows came from, a part at a time."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from luthier.data.spool import Spool


@dataclass(frozen=True)
class SpooledTexts:
    """The texts of a spool, for searches over them in any process."""

    spool: Spool
    parts: int

    def prompts(self, part: int) -> list[str]:
        """What each row of a part asks: its messages before the reply, without the system's.

        A row without a prompt is its own prompt. Of a preference, `messages` are the prompt.
        """
        return [_text(messages[:-1]) or _text(messages) for messages in self._rows(part)]

    def replies(self, part: int) -> list[str]:
        """The reply of each row of a part; of a preference both, of a row without prompt none."""
        return [
            _text(messages[-1:]) if _text(messages[:-1]) else "" for messages in self._rows(part)
        ]

    def place(self, part: int, row: int) -> str:
        """`file:line` of a row, counted from 0 within its part."""
        lines = self.spool.read(part, ["source_line"])["source_line"]
        return f"{self.spool.facts(part)['file']}:{lines[row].as_py()}"

    def _rows(self, part: int) -> Iterator[list[tuple[str, str]]]:
        """(role, content) of each message; of a preference both replies as one last message."""
        table = self.spool.read(part, ["messages", "chosen", "rejected"])
        prompts = _conversations(table["messages"])
        if table["chosen"].null_count == table.num_rows:
            yield from prompts
            return
        replies = (_conversations(table[name]) for name in ("chosen", "rejected"))
        for prompt, chosen, rejected in zip(prompts, *replies, strict=True):
            yield [*prompt, ("assistant", f"{_text(chosen)}\n{_text(rejected)}")]


def _text(messages: Sequence[tuple[str, str]]) -> str:
    return "\n".join(content for role, content in messages if content and role != "system")


def _conversations(column: Any) -> Iterator[list[tuple[str, str]]]:
    rows = column.combine_chunks()
    flat = rows.flatten()
    messages = list(
        zip(flat.field("role").to_pylist(), flat.field("content").to_pylist(), strict=True)
    )
    first = rows.offsets[0].as_py() if len(rows) else 0
    for start, end in pairwise(rows.offsets.to_pylist()):
        yield messages[start - first : end - first]


@dataclass(frozen=True)
class Places:
    """Rows by their number through all parts: `starts[p]` is the number of part p's first row."""

    spool: Spool
    starts: Sequence[int]
    files: Sequence[str]

    def of(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """Rows by part, numbered within it."""
        found: dict[int, list[int]] = {}
        for row in rows:
            part = bisect_right(self.starts, row) - 1
            found.setdefault(part, []).append(row - self.starts[part])
        return found

    def where(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of rows given in ascending order."""
        found = []
        for part, places in self.of(rows).items():
            lines = self.spool.read(part, ["source_line"])["source_line"]
            found += [f"{self.files[part]}:{lines[place].as_py()}" for place in places]
        return found
