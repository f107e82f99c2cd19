"""A JSON file that is one array of objects, cut at its top-level commas while it streams.

What is wrong inside an element is that element's fault alone. What is wrong around elements (the
array never ends, or ends twice) leaves no certain place to go on, so there the file is refused.
"""

from collections.abc import Iterator

from luthier.data.lines import blocks
from luthier.data.records import (
    BYTE_ORDER_MARK,
    RECORD_LIMIT_BYTES,
    Chunk,
    OpenFile,
    Record,
    reader,
)
from luthier.data.rows import RawRow, Rejected, RowError, escaped
from luthier.data.strict_json import is_plain, json_object
from luthier.errors import DataError

_WHITESPACE = b" \t\r\n"
_QUOTE, _OPEN, _CLOSE, _COMMA = 1, 2, 3, 4
_CLASSES = bytes(
    {'"': _QUOTE, "{": _OPEN, "[": _OPEN, "}": _CLOSE, "]": _CLOSE, ",": _COMMA}.get(chr(byte), 0)
    for byte in range(256)
)
_LINE_SHOWN_BYTES = 1 << 16  # a first line that is looked at to tell JSON Lines from an object


def _cut_array(file: OpenFile) -> Iterator[Chunk]:
    more = blocks(file)
    rest, line, offset = _after_bracket(file, more)
    is_first = True
    while True:
        commas, end = _structure(rest)
        _refuse_overlong(file, line, commas[0] if commas else end, len(rest))
        if end is not None:
            if commas or not is_first or rest[:end].strip(_WHITESPACE):
                yield file.chunk(line, offset, end, rest[:end])
            _refuse_more(file, line + rest.count(b"\n", 0, end), rest[end:], more)
            return
        if commas:
            yield file.chunk(line, offset, commas[-1], rest[: commas[-1]])
            line += rest.count(b"\n", 0, commas[-1])
            offset += commas[-1] + 1
            rest, is_first = rest[commas[-1] + 1 :], False
        block = next(more, b"")
        if not block:
            raise DataError(
                f"{file.file.name}:{_line_of_text(rest, line)}: the file ends inside its array, "
                "in or after the element that begins here. It was cut short, or a quote or a "
                "bracket is missing."
            )
        rest += block


@reader(".json", cut=_cut_array)
def read_json_array(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """The objects of one top-level array (RFC 8259, UTF-8 without byte order mark)."""
    name, line, plain = chunk.file.name, chunk.line, is_plain(data)
    commas, _ = _structure(data)
    start = 0
    for end in [*commas, len(data)]:
        element = data[start:end]
        record = element.lstrip(_WHITESPACE)
        # The line of its first character; of nothing at all, that of the comma after it.
        number = _line_of_text(element, line)
        record = record.rstrip(_WHITESPACE)
        try:
            if not record:
                raise RowError("empty-element", "nothing between a comma and the next")
            yield RawRow(name, number, json_object(record, plain), record)
        except RowError as error:
            yield Rejected(name, number, str(error), escaped(record))
        line += element.count(b"\n")
        start = end + 1


def _structure(data: bytes) -> tuple[list[int], int | None]:
    """Positions of the commas between elements, and of the bracket after the last, if it is here.

    `data` begins between elements. Vectorised: an array of a million rows is cut in seconds.
    """
    import numpy as np

    if b"\\" in data:  # hide escaped quotes, in place
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    kinds = np.frombuffer(data.translate(_CLASSES), dtype=np.uint8)
    places = np.flatnonzero(kinds)
    kinds = kinds[places]
    outside = np.cumsum(kinds == _QUOTE) % 2 == 0
    steps = (kinds == _OPEN).astype(np.int64) - (kinds == _CLOSE)
    depth = np.cumsum(np.where(outside, steps, 0))
    ends = places[(depth == -1) & outside]
    end = int(ends[0]) if ends.size else None
    commas = places[(kinds == _COMMA) & outside & (depth == 0)]
    return [int(comma) for comma in commas if end is None or comma < end], end


def _line_of_text(data: bytes, line: int) -> int:
    """The line of the first character that is no white space; `data` begins in `line`."""
    return line + data.count(b"\n", 0, len(data) - len(data.lstrip(_WHITESPACE)))


def _after_bracket(file: OpenFile, more: Iterator[bytes]) -> tuple[bytes, int, int]:
    """(what was read after the opening bracket, the line and the offset where that begins)."""
    head, line, offset = b"", 1, 0
    while not head:
        block = next(more, b"")
        if not block:
            raise DataError(f"{file.file.name}: nothing but white space, where '[' is expected.")
        head = block.lstrip(_WHITESPACE)
        line = _line_of_text(block, line)
        offset += len(block) - len(head)
    if head[:1] != b"[":
        raise DataError(_why_no_array(file.file.name, line, head, more))
    return head[1:], line, offset + 1


def _why_no_array(name: str, line: int, head: bytes, more: Iterator[bytes]) -> str:
    while len(head) < _LINE_SHOWN_BYTES and (block := next(more, b"")):
        head += block
    if head.startswith(BYTE_ORDER_MARK):
        return f"{name}:{line}: the file begins with U+FEFF. Save it as UTF-8 without it."
    first, _, others = head.partition(b"\n")
    if not head.startswith(b"{"):
        return (
            f"{name}:{line}: a .json file must be an array of objects, and this begins with "
            f"'{escaped(head[:1])}'. Mend the file, or let its name say what it is."
        )
    try:
        json_object(first)
        is_lines = bool(others.strip())
    except RowError:
        is_lines = False
    if is_lines:
        return f"{name}:{line}: these are JSON Lines, one object a line. Name the file .jsonl."
    return (
        f"{name}:{line}: a single object, where an array of objects is needed. Put the rows into "
        "[ ], or write them one a line into a .jsonl file."
    )


def _refuse_overlong(file: OpenFile, line: int, end: int | None, read_bytes: int) -> None:
    """Only the first element can be that long: a block that is read is never longer."""
    if (read_bytes if end is None else end) > RECORD_LIMIT_BYTES:
        raise DataError(
            f"{file.file.name}:{line}: the element that begins here has more than "
            f"{RECORD_LIMIT_BYTES >> 20} MiB, or a quote or bracket is missing. Mend or remove it."
        )


def _refuse_more(file: OpenFile, line: int, tail: bytes, more: Iterator[bytes]) -> None:
    if tail[:1] != b"]":
        raise DataError(
            f"{file.file.name}:{line}: a '}}' too many, where ']' would end the array."
        )
    tail = tail[1:]
    while True:
        line = _line_of_text(tail, line)
        if tail.strip(_WHITESPACE):
            raise DataError(
                f"{file.file.name}:{line}: more data after the end of the array. A .json file "
                "holds one array; write several into several files, or as JSON Lines."
            )
        tail = next(more, b"")
        if not tail:
            return
