"""CSV and TSV, strictly: RFC 4180 quoting, a header line, as many fields as it names.

Python's csv module cannot say on which line a record began, reads a stray quote as text, stops
at the first invalid byte and at fields of 128 KiB; so records and fields are cut here, on bytes.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO

from luthier.data.lines import whole_lines
from luthier.data.records import BYTE_ORDER_MARK, Chunk, Cut, OpenFile, Record, decode, reader
from luthier.data.rows import RawRow, Rejected, RowError, escaped

OPEN_LIMIT_BYTES = 1 << 20  # a quoted field still open after this much was never meant to be one


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    whole: re.Pattern[bytes]  # a record whose quotes are all where RFC 4180 allows them
    begun: re.Pattern[bytes]  # the first line of a record that goes on in the next line
    field: re.Pattern[str]  # one field of a whole record: quoted, or plain


def _dialect(delimiter: str) -> _Dialect:
    between = re.escape(delimiter)
    text = r'"[^"]*+(?:""[^"]*+)*+'
    field = rf'(?:{text}"|[^"\r\n{between}]*+)'
    whole = rf"{field}(?:{between}{field})*+\r?\n?"
    begun = rf"(?:{field}{between})*{text}"
    one = rf'(?:^|{between})(?:"([^"]*+(?:""[^"]*+)*+)"|([^"{between}]*+))'
    return _Dialect(
        delimiter, re.compile(whole.encode()), re.compile(begun.encode()), re.compile(one)
    )


_COMMA = _dialect(",")
_TAB = _dialect("\t")


def _cut_records(dialect: _Dialect) -> Cut:
    def cut(file: OpenFile) -> Iterator[Chunk]:
        return _chunks(file, dialect)

    return cut


@reader(".csv", cut=_cut_records(_COMMA))
def read_csv(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """Comma-separated values with a header line; every value is text."""
    return _read(chunk, data, _COMMA)


@reader(".tsv", cut=_cut_records(_TAB))
def read_tsv(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """Tab-separated values with a header line; every value is text."""
    return _read(chunk, data, _TAB)


def _chunks(file: OpenFile, dialect: _Dialect) -> Iterator[Chunk]:
    """Whole records; the header's names, found in the first, go along with every chunk."""
    line, offset = 1, 0
    header: tuple[str, ...] | None = None
    for data, size in _whole_records(file, dialect):
        is_overlong = size > len(data)
        if line == 1 and not is_overlong:
            header = _header_of(data, dialect)
        yield file.chunk(line, offset, size, data, header)
        line += 1 if is_overlong else data.count(b"\n")
        offset += size


def _whole_records(file: OpenFile, dialect: _Dialect) -> Iterator[tuple[bytes, int]]:
    """As `whole_lines`, of pieces that also end where a record ends."""
    pending = b""  # whole lines of a record that goes on
    for data, size in whole_lines(file):
        if size > len(data):
            if pending:
                yield pending, len(pending)
            yield data, size
            pending = b""
            continue
        data = pending + data
        begun = _size_of_begun(data, dialect)
        end = len(data) - begun
        if end:
            yield data[:end], end
        pending = data[end:]
    if pending:
        yield pending, len(pending)


def _size_of_begun(data: bytes, dialect: _Dialect) -> int:
    """Bytes at the end of whole lines that belong to a record that goes on after them."""
    if b'"' not in data:
        return 0
    size_bytes = 0
    for _, lines, is_done in _groups(BytesIO(data), dialect):
        size_bytes = 0 if is_done else sum(map(len, lines))
    return size_bytes


def _header_of(data: bytes, dialect: _Dialect) -> tuple[str, ...] | None:
    """The column names, None where they cannot be used: the chunk's reader says why."""
    _, record, fault = next(_records(data, 1, dialect))
    try:
        return _header(record, fault, dialect)
    except RowError:
        return None


def _read(chunk: Chunk, data: bytes, dialect: _Dialect) -> Iterator[Record]:
    name, header = chunk.file.name, chunk.context
    for number, record, fault in _records(data, chunk.line, dialect):
        try:
            if number == 1:
                _header(record, fault, dialect)
                continue
            if fault:
                raise fault
            yield RawRow(name, number, _values(record, header, dialect), record)
        except RowError as error:
            yield Rejected(name, number, str(error), escaped(record))


def _header(data: bytes, fault: RowError | None, dialect: _Dialect) -> tuple[str, ...]:
    if data.startswith(BYTE_ORDER_MARK):
        raise RowError("byte-order-mark", "the file begins with U+FEFF; save it without")
    if fault:
        raise fault
    names = _fields(data, dialect)
    if not names or not all(name.strip() for name in names):
        raise RowError("csv-header", "the first line must name every column")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RowError("csv-header", f"column '{twice[0]}' is named twice")
    return tuple(names)


def _values(data: bytes, header: tuple[str, ...] | None, dialect: _Dialect) -> dict[str, object]:
    if header is None:
        raise RowError("csv-header", "the header in line 1 cannot be used, so no row can be read")
    fields = _fields(data, dialect)
    if len(fields) != len(header):
        raise RowError("csv-fields", f"{len(fields)} fields, where the header names {len(header)}")
    if len(header) > 1 and tuple(fields) == header:
        raise RowError("csv-header", "the header again, as where two files were joined")
    return dict(zip(header, fields, strict=True))


def _fields(data: bytes, dialect: _Dialect) -> list[str]:
    """The fields of one record whose quotes are in place; an empty line has none."""
    text = decode(data).removesuffix("\n").removesuffix("\r")
    if not text:
        return []
    if '"' in text:
        found = dialect.field.finditer(text)
        return [field[2] if field[1] is None else field[1].replace('""', '"') for field in found]
    if "\r" in text:
        raise RowError("csv-syntax", "a carriage return that ends no line, outside quotes")
    return text.split(dialect.delimiter)


def _records(
    data: bytes, line: int, dialect: _Dialect
) -> Iterator[tuple[int, bytes, RowError | None]]:
    """(first line, bytes, fault) of each record. A faulty one is cut at its line's end."""
    if b'"' not in data:
        for number, record in enumerate(BytesIO(data), start=line):
            yield number, record, None
        return
    for first_line, lines, _ in _groups(BytesIO(data), dialect):
        yield from _finished(line + first_line, lines, dialect)


def _groups(lines: Iterable[bytes], dialect: _Dialect) -> Iterator[tuple[int, list[bytes], bool]]:
    """(number of the first line from 0, lines, whether that is all) of each record, by quotes."""
    pending: list[bytes] = []
    size_bytes, is_open, first = 0, False, 0
    for number, line in enumerate(lines):
        if not pending:
            first, size_bytes, is_open = number, 0, False
        pending.append(line)
        size_bytes += len(line)
        is_open ^= line.count(b'"') % 2 == 1
        if is_open and size_bytes <= OPEN_LIMIT_BYTES and _may_go_on(pending, dialect):
            continue
        yield first, pending, True
        pending = []
    if pending:
        yield first, pending, False


def _may_go_on(pending: list[bytes], dialect: _Dialect) -> bool:
    return len(pending) > 1 or dialect.begun.fullmatch(pending[0]) is not None


def _finished(
    first: int, lines: list[bytes], dialect: _Dialect
) -> Iterator[tuple[int, bytes, RowError | None]]:
    data = b"".join(lines)
    if b'"' not in data or dialect.whole.fullmatch(data):
        yield first, data, None
        return
    # Its quotes say nothing certain about where it ends: every line of it stands for itself.
    for offset, line in enumerate(lines):
        yield (
            first + offset,
            line,
            RowError("csv-quote", f"a quote out of place since line {first}"),
        )
