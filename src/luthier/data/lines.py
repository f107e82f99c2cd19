"""Text files in blocks and in whole lines, in bounded memory however long a line is."""

from collections.abc import Iterator

from luthier.data.records import RECORD_LIMIT_BYTES, Chunk, OpenFile
from luthier.errors import DataError

HEAD_BYTES = 8192  # of a line too long to be read; more than quarantine.jsonl shows

# First bytes that no text of ours can have, and what the file is then.
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd; let its name end in .zst",
    b"\xfd7zXZ\x00": "xz; unpack it",
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack or export it",
    b"PAR1\x15": "Parquet; let its name end in .parquet",
    b"ARROW1\x00\x00": "Arrow; let its name end in .arrow",
}
_LONGEST_MARK_BYTES = max(map(len, _FOREIGN))


def blocks(file: OpenFile) -> Iterator[bytes]:
    """A text file in blocks of a chunk's size.

    Raises:
        DataError: its first bytes say that it is no text.
    """
    head = file.stream.peek(_LONGEST_MARK_BYTES)
    for mark, meaning in _FOREIGN.items():
        if head.startswith(mark):
            raise DataError(f"{file.file.name}: by its first bytes this is {meaning}.")
    size = min(file.chunk_bytes, RECORD_LIMIT_BYTES)
    while block := file.stream.read(size):
        yield block


def whole_lines(file: OpenFile) -> Iterator[tuple[bytes, int]]:
    """(bytes, size) of pieces that end where a line ends; the last one where the file does.

    A line beyond `RECORD_LIMIT_BYTES` comes alone, `bytes` its beginning and `size` its length.
    """
    begun = bytearray()  # the line whose end is not read yet; of one too long its beginning
    length = 0  # bytes of that line so far
    for block in blocks(file):
        first = block.find(b"\n") + 1
        if length + (first or len(block)) > RECORD_LIMIT_BYTES:
            begun += block[:HEAD_BYTES]
            del begun[HEAD_BYTES:]
            length += first or len(block)
            if not first:
                continue
            yield bytes(begun), length
            begun.clear()
            block, length = block[first:], 0
        end = block.rfind(b"\n") + 1
        if end:
            data = bytes(begun) + block[:end]
            yield data, len(data)
            begun.clear()
            length = 0
        begun += block[end:]
        length += len(block) - end
    if length:
        yield bytes(begun), length


def cut_lines(file: OpenFile) -> Iterator[Chunk]:
    """Chunks of a file in which every line is a record."""
    line, offset = 1, 0
    for data, size in whole_lines(file):
        yield file.chunk(line, offset, size, data)
        line += data.count(b"\n") if size == len(data) else 1
        offset += size
