"""CSV and TSV, strictly: RFC 4180 quoting, a header line, as many fields as it names.

Python's csv module cannot say on which line a record began, reads a stray quote as text and
stops at the first invalid byte; so records are cut here, on bytes, and csv parses each alone.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from luthier.data.records import BYTE_ORDER_MARK, Record, decode, escaped, reader
from luthier.data.rows import RawRow, Rejected, RowError

RECORD_LIMIT_BYTES = 1 << 20  # a quoted field still open after this much was never meant to be one


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    whole: re.Pattern[bytes]  # a record whose quotes are all where RFC 4180 allows them
    begun: re.Pattern[bytes]  # the first line of a record that goes on in the next line


def _dialect(delimiter: str) -> _Dialect:
    between = re.escape(delimiter).encode()
    text = rb'"[^"]*+(?:""[^"]*+)*+'
    field = rb"(?:" + text + rb'"|[^"\r\n' + between + rb"]*+)"
    whole = field + rb"(?:" + between + field + rb")*+\r?\n?"
    begun = rb"(?:" + field + between + rb")*" + text
    return _Dialect(delimiter, re.compile(whole), re.compile(begun))


_COMMA = _dialect(",")
_TAB = _dialect("\t")


@reader(".csv")
def read_csv(file: BinaryIO, name: str) -> Iterator[Record]:
    """Comma-separated values with a header line; every value is text."""
    return _read(file, name, _COMMA)


@reader(".tsv")
def read_tsv(file: BinaryIO, name: str) -> Iterator[Record]:
    """Tab-separated values with a header line; every value is text."""
    return _read(file, name, _TAB)


def _read(file: BinaryIO, name: str, dialect: _Dialect) -> Iterator[Record]:
    header: list[str] | None = None
    for number, data, fault in _records(file, dialect):
        try:
            if number == 1 and data.startswith(BYTE_ORDER_MARK):
                raise RowError("byte-order-mark", "the file begins with U+FEFF; save it without")
            if fault:
                raise fault
            if number == 1:
                header = _header(data, dialect)
                continue
            yield RawRow(name, number, _values(data, header, dialect), escaped(data))
        except RowError as error:
            yield Rejected(name, number, str(error), escaped(data))


def _header(data: bytes, dialect: _Dialect) -> list[str]:
    names = _fields(data, dialect)
    if not names or not all(name.strip() for name in names):
        raise RowError("csv-header", "the first line must name every column")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RowError("csv-header", f"column '{twice[0]}' is named twice")
    return names


def _values(data: bytes, header: list[str] | None, dialect: _Dialect) -> dict[str, object]:
    if header is None:
        raise RowError("csv-header", "the header in line 1 cannot be used, so no row can be read")
    fields = _fields(data, dialect)
    if len(fields) != len(header):
        raise RowError("csv-fields", f"{len(fields)} fields, where the header names {len(header)}")
    return dict(zip(header, fields, strict=True))


def _fields(data: bytes, dialect: _Dialect) -> list[str]:
    text = decode(data).rstrip("\r\n")
    try:
        return next(csv.reader([text], delimiter=dialect.delimiter, strict=True))
    except csv.Error as error:
        raise RowError("csv-syntax", str(error)) from error


def _records(file: BinaryIO, dialect: _Dialect) -> Iterator[tuple[int, bytes, RowError | None]]:
    """(first line, bytes, fault) of each record. A faulty one is cut at its line's end."""
    pending: list[bytes] = []
    size_bytes, is_open, first = 0, False, 1
    for number, line in enumerate(file, start=1):
        if not pending:
            first, size_bytes, is_open = number, 0, False
        pending.append(line)
        size_bytes += len(line)
        is_open ^= line.count(b'"') % 2 == 1
        if is_open and size_bytes <= RECORD_LIMIT_BYTES and _may_go_on(pending, dialect):
            continue
        yield from _finished(first, pending, dialect)
        pending = []
    yield from _finished(first, pending, dialect)


def _may_go_on(pending: list[bytes], dialect: _Dialect) -> bool:
    return len(pending) > 1 or dialect.begun.fullmatch(pending[0]) is not None


def _finished(
    first: int, lines: list[bytes], dialect: _Dialect
) -> Iterator[tuple[int, bytes, RowError | None]]:
    data = b"".join(lines)
    if not lines:
        return
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
