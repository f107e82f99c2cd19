"""What a reader is, how one is registered, and what goes between its two halves.

A reader cuts a file into chunks (in one process, streaming) and reads a chunk's records (in any
process). What other readers mend in silence (`datasets` accepts invalid UTF-8, NaN, duplicate
keys and a byte order mark) is a `Rejected` record here. A reader for another suffix is one more
function under `@reader`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luthier.data.rows import RawRow, Rejected, RowError

Record = RawRow | Rejected

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A longer record was never meant to be one. Every block that is read at once is smaller.
RECORD_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read; `name` is how to say it in messages and counts, as the user wrote it."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole records of a file, for any process to read.

    `line` is the line (or row) where it begins, counted from 1, and `size` its length in bytes.
    `data` is None for a part of a plain file, which whoever reads it takes from there. Where
    `size` is more than `data` holds, the chunk is one record that is too long to be read, and
    `data` its beginning. `context` is what else the reader's second half must know.
    """

    file: SourceFile
    kind: str
    line: int
    offset: int
    size: int
    data: bytes | None = None
    context: Any = None

    @property
    def is_one_overlong_record(self) -> bool:
        """Whether it is a single record beyond `RECORD_LIMIT_BYTES`."""
        return self.data is not None and self.size > len(self.data)


class Stream(Protocol):
    """Bytes in order: as many as asked for, fewer only at the end or before damage."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end."""
        ...

    def peek(self, size: int, /) -> bytes:
        """About as many of the next bytes, which `read` returns again."""
        ...


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as its reader's first half gets it; `stream` is unpacked where the file is packed."""

    file: SourceFile
    kind: str
    stream: Stream
    is_packed: bool
    chunk_bytes: int

    def chunk(self, line: int, offset: int, size: int, data: bytes, context: Any = None) -> Chunk:
        """A chunk of text; its bytes travel along only where they are not in the file as such."""
        kept = data if self.is_packed or size > len(data) else None
        return Chunk(self.file, self.kind, line, offset, size, kept, context)


Cut = Callable[[OpenFile], Iterator[Chunk]]
Read = Callable[[Chunk, bytes], Iterator[Record]]


@dataclass(frozen=True)
class Reader:
    """The two halves: a file into chunks, and a chunk with its bytes into records."""

    cut: Cut
    read: Read


READERS: dict[str, Reader] = {}


def reader(*suffixes: str, cut: Cut) -> Callable[[Read], Read]:
    """Register a function (chunk, its bytes) -> records for these suffixes, and what cuts them."""

    def register(function: Read) -> Read:
        READERS.update(dict.fromkeys(suffixes, Reader(cut, function)))
        return function

    return register


def decode(data: bytes) -> str:
    """Strict UTF-8.

    Raises:
        RowError: a byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise RowError(
            "invalid-utf8", f"byte 0x{byte:02x} at byte {error.start + 1} of the record"
        ) from error
