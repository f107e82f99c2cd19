"""Files into chunks, in one process, and chunks into records, in any.

Where a file is cut depends on its content alone, so any number of processes sees the same chunks.
"""

from collections.abc import Iterator
from typing import BinaryIO

from luthier.data.compressed import PACKINGS, Unpacked
from luthier.data.readers import READERS, kind_of
from luthier.data.records import (
    RECORD_LIMIT_BYTES,
    Chunk,
    OpenFile,
    Record,
    SourceFile,
    Stream,
)
from luthier.data.rows import RAW_LIMIT_CHARACTERS, Rejected, RowError, escaped
from luthier.errors import DataError

__all__ = ["CHUNK_BYTES", "Chunk", "Record", "SourceFile", "cut", "read"]

CHUNK_BYTES = 4 << 20


def cut(file: SourceFile, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The chunks of a file, about `chunk_bytes` each, in order. Memory does not grow with it.

    Raises:
        DataError: the file cannot be read, is damaged, or is not what its name says.
    """
    kind, packing = kind_of(file)
    try:
        with file.path.open("rb") as plain:
            stream: Stream = _unpacked(plain, packing, file) if packing else plain
            opened = OpenFile(file, kind, stream, packing is not None, chunk_bytes)
            yield from READERS[kind].cut(opened)
    except OSError as error:
        raise _unreadable(file, error) from error


def read(chunk: Chunk) -> Iterator[Record]:
    """The records of a chunk: rows, and what is wrong with the others.

    Raises:
        DataError: its file cannot be read any more.
    """
    if chunk.is_one_overlong_record:
        yield _overlong(chunk)
        return
    data = _taken(chunk) if chunk.data is None else chunk.data
    yield from READERS[chunk.kind].read(chunk, data)


def _unpacked(plain: BinaryIO, packing: str, file: SourceFile) -> Unpacked:
    return Unpacked(PACKINGS[packing](plain), file.path.stat().st_size, file.name)


def _taken(chunk: Chunk) -> bytes:
    try:
        with chunk.file.path.open("rb") as file:
            file.seek(chunk.offset)
            data = file.read(chunk.size)
    except OSError as error:
        raise _unreadable(chunk.file, error) from error
    if len(data) < chunk.size:
        raise DataError(
            f"{chunk.file.name}: the file became shorter while it was read. Run again when "
            "nothing writes to it."
        )
    return data


def _unreadable(file: SourceFile, error: OSError) -> DataError:
    return DataError(f"{file.name}: cannot be read: {error.strerror}. Check its permissions.")


def _overlong(chunk: Chunk) -> Rejected:
    reason = RowError(
        "line-too-long", f"{chunk.size} bytes, where {RECORD_LIMIT_BYTES} are allowed"
    )
    head = escaped(chunk.data or b"")[:RAW_LIMIT_CHARACTERS]
    raw = f"{head}… ({chunk.size} bytes in all)"
    return Rejected(chunk.file.name, chunk.line, str(reason), raw)
