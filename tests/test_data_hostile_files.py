"""Broken and hostile files: each has one outcome, no record is lost, at any size of chunks."""

import gzip
import io
import json
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from luthier.data import chunks
from luthier.data.records import Record, SourceFile
from luthier.data.rows import RawRow, Rejected
from luthier.errors import DataError

ROW = b'{"text": "one", "label": "x"}\n'
LINES = ROW * 3
CSV = b"text,label\n"
MIB = 1 << 20
SMALL_CHUNKS = (7, 64, 1000, chunks.CHUNK_BYTES)
LARGE_CHUNKS = (3 * MIB, chunks.CHUNK_BYTES)


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: rows, rejections by kind, and an error where one ends."""

    suffix: str
    content: bytes | Callable[[], bytes]
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    chunk_sizes: tuple[int, ...] = SMALL_CHUNKS


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def packed_zeros(pack: Callable[[bytes], bytes], members: int = 1) -> Callable[[], bytes]:
    return lambda: pack(bytes(300 * MIB // members)) * members


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def table(rows: int = 3) -> pa.Table:
    return pa.table({"text": [f"text {n}" for n in range(rows)], "label": ["x"] * rows})


def as_parquet(data: pa.Table | None = None) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(
        table() if data is None else data,
        sink,
        row_group_size=2,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
    )
    return sink.getvalue()


def as_arrow(data: pa.Table | None = None) -> bytes:
    data = table() if data is None else data
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=2)
    return sink.getvalue()


def not_utf8() -> pa.Table:
    data = pa.array([b"one", b"\xff\xfe", b"three"])
    return pa.table({"text": pa.Array.from_buffers(pa.string(), 3, data.buffers())})


def wrong_offsets() -> bytes:
    """Texts that claim to reach far beyond their buffer."""
    data = as_arrow(pa.table({"text": ["abc", "defg", "hijkl"]}))
    return data.replace(struct.pack("<iii", 0, 3, 7), struct.pack("<iii", 0, 3, 1 << 30))


GZIP = gzip.compress(LINES * 4000, mtime=0)
ZSTD = zstd(LINES * 4000)
NOISE = bytes(range(256)) * 4

JSON_LINES_CASES = {
    "last line cut short": Case(".jsonl", LINES + b'{"text": "tw', 3, {"truncated-line": 1}),
    "no newline at the end": Case(".jsonl", LINES + ROW.rstrip(), 4),
    "byte order mark": Case(".jsonl", b"\xef\xbb\xbf" + LINES, 2, {"byte-order-mark": 1}),
    "mixed newlines": Case(".jsonl", ROW + ROW[:-1] + b"\r\n" + ROW, 3),
    "a carriage return is no line end": Case(
        ".jsonl", ROW[:-1] + b"\r" + ROW + ROW, 1, {"not-json": 1}
    ),
    "a blank line": Case(".jsonl", ROW + b" \n" + ROW, 2, {"empty-line": 1}),
    "only newlines": Case(".jsonl", b"\n" * 9, 0, {"empty-line": 9}),
    "only white space": Case(".jsonl", b"  ", 0, {"empty-line": 1}),
    "a line of 50 MB": Case(
        ".jsonl",
        lambda: ROW + b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + ROW,
        2,
        {"line-too-long": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
    "50 MB without a line end, packed": Case(
        ".jsonl.gz",
        lambda: gzip.compress(ROW + NOISE.replace(b"\n", b"") * 50_000, 1),
        1,
        {"line-too-long": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
    "a line of 16 MiB is the longest": Case(
        ".jsonl",
        lambda: b"".join(
            b'{"t": "' + b"x" * (16 * MIB - 10 + more) + b'"}\n' for more in (0, 1, 0)
        ),
        2,
        {"line-too-long": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
    "NUL inside a text": Case(".jsonl", ROW + b'{"text": "a\0b"}\n', 1, {"not-json": 1}),
    "NUL between rows": Case(".jsonl", ROW + b"\0\0\n" + ROW, 2, {"not-json": 1}),
    "half a surrogate pair": Case(
        ".jsonl", ROW + b'{"a": "\\ud83d"}\n{"\\ude00\\ud83d": 1}\n', 1, {"invalid-unicode": 2}
    ),
    "a surrogate as bytes": Case(
        ".jsonl", ROW + b'{"a": "\xed\xa0\x80"}\n', 1, {"invalid-utf8": 1}
    ),
    "an overlong encoding": Case(".jsonl", ROW + b'{"a": "\xc0\xaf"}\n', 1, {"invalid-utf8": 1}),
    "nested 1,000 deep": Case(
        ".jsonl", ROW + b'{"a": ' * 1000 + b"1" + b"}" * 1000 + b"\n", 1, {"nested-too-deep": 1}
    ),
    "a million brackets": Case(
        ".jsonl",
        b"[" * MIB + b"\n" + ROW,
        1,
        {"nested-too-deep": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
    "NaN and Infinity": Case(
        ".jsonl",
        ROW + b'{"a": NaN}\n{"a": [-Infinity]}\n{"a": Infinity}\n{"a": 1e999}\n',
        1,
        {"not-a-number": 4},
    ),
    "equal keys": Case(
        ".jsonl", b'{"a": 1, "a": 1}\n{"b": {"c": 1, "\\u0063": 2}}\n', 0, {"duplicate-key": 2}
    ),
    "an integer of 5,000 digits": Case(
        ".jsonl", b'{"a": ' + b"7" * 5000 + b"}\n" + ROW, 1, {"not-json": 1}
    ),
    "UTF-16 with its mark": Case(
        ".jsonl", LINES.decode().encode("utf-16"), error="UTF-16 text; save it as UTF-8"
    ),
    "UTF-16 without a mark": Case(
        ".jsonl", LINES.decode().encode("utf-16-le"), 0, {"not-json": 3, "truncated-line": 1}
    ),
    "latin-1": Case(".jsonl", ROW + '{"a": "é"}\n'.encode("latin-1"), 1, {"invalid-utf8": 1}),
    "a binary file": Case(".jsonl", NOISE, 0, {"not-json": 1, "invalid-utf8": 4}),
    "gzip by another name": Case(".jsonl", GZIP, error=r"gzip; let its name end in \.gz"),
    "Parquet by another name": Case(".csv", as_parquet(), error=r"end in \.parquet"),
    "a zip archive": Case(".jsonl", b"PK\x03\x04rest", error="a zip archive"),
}

PACKED_CASES = {
    "gzip": Case(".jsonl.gz", GZIP, 12_000, chunk_sizes=(1000, MIB)),
    "two gzip files in one": Case(".jsonl.gz", gzip.compress(ROW) + gzip.compress(ROW), 2),
    "zstd": Case(".jsonl.zst", ZSTD, 12_000, chunk_sizes=(1000, MIB)),
    "two zstd frames and a skippable one": Case(
        ".ndjson.zst", zstd(ROW) + struct.pack("<II", 0x184D2A50, 3) + b"abc" + zstd(ROW), 2
    ),
    "gzip cut short": Case(
        ".jsonl.gz",
        GZIP[:-9],
        12_000,
        error="after line 12000, 360000 bytes unpacked: it ends too",
    ),
    "gzip with a wrong checksum": Case(
        ".jsonl.gz", flipped(GZIP, len(GZIP) - 7), 12_000, error="damaged .*CRC check failed"
    ),
    "gzip with trailing noise": Case(".jsonl.gz", GZIP + NOISE, 12_000, error="damaged"),
    "no gzip at all": Case(".jsonl.gz", LINES, error="damaged after line 0.*[Nn]ot a gzipped"),
    "zstd cut short": Case(
        ".jsonl.zst", ZSTD[:-3], 8738, error="after line 8738, 262144 bytes .*it ends too early"
    ),
    "zstd with a flipped byte": Case(".jsonl.zst", flipped(ZSTD, 6), error="damaged"),
    "zstd with trailing noise": Case(".jsonl.zst", zstd(LINES) + NOISE, 3, error="damaged"),
    "gzip bomb": Case(
        ".jsonl.gz",
        packed_zeros(gzip.compress, members=10),
        error="more than 1000 times its size",
        chunk_sizes=LARGE_CHUNKS[1:],
    ),
    "zstd bomb": Case(
        ".csv.zst",
        packed_zeros(zstd),
        error="more than 1000 times its size",
        chunk_sizes=LARGE_CHUNKS[1:],
    ),
    "packed Parquet": Case(".parquet.gz", GZIP, error="packed inside"),
}

CSV_CASES = {
    "too few and too many fields": Case(".csv", CSV + b"a\na,b,c\na,b\n", 1, {"csv-fields": 2}),
    "packed CSV": Case(".csv.gz", gzip.compress(CSV + b'a,"b\n"\n'), 1),
    "a quote that stays open": Case(".csv", CSV + b'a,x\n"b,x\nc,x\n', 1, {"csv-quote": 2}),
    "text after a quote": Case(".tsv", b'a\tb\n"x"y\tz\nu\tv\n', 1, {"csv-quote": 1}),
    "the header again": Case(".csv", CSV + b"a,b\n" + CSV + b"c,d\n", 2, {"csv-header": 1}),
    "a header alone": Case(".csv", CSV),
    "equal column names": Case(".csv", b"text,text\na,b\n", 0, {"csv-header": 2}),
    "a header with a mark": Case(
        ".csv", b"\xef\xbb\xbf" + CSV + b"a,b\n", 0, {"byte-order-mark": 1, "csv-header": 1}
    ),
    "a header with an open quote": Case(".csv", b'text,"lab\na,b\n', 0, {"csv-quote": 2}),
    "a record over lines": Case(".csv", CSV + b'"a\r\n\n""b""\n",x\r\nc,y', 2),
    "semicolons": Case(".csv", b"text;label\na;b\na,b;c\n", 1, {"csv-fields": 1}),
    "a lone carriage return": Case(".csv", CSV + b"a\rb,c\nd,e\r\n", 1, {"csv-syntax": 1}),
    "latin-1 CSV": Case(".csv", CSV + b"caf\xe9,x\nb,y\n", 1, {"invalid-utf8": 1}),
    "NUL in CSV is a character": Case(".csv", CSV + b"a\0b,x\n", 1),
    "a CSV line of 20 MB in a quote": Case(
        ".csv",
        lambda: CSV + b'a,"b\n' + b"x" * 20_000_000 + b'\nc",d\ne,f\n',
        1,
        {"csv-quote": 2, "line-too-long": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
    "a header of 20 MB": Case(
        ".csv",
        lambda: b"x" * 20_000_000 + b"\na,b\n",
        0,
        {"csv-header": 1, "line-too-long": 1},
        chunk_sizes=LARGE_CHUNKS,
    ),
}

JSON_CASES = {
    "an array": Case(".json", b" [\n" + ROW + b",\n" + ROW + b"]\n", 2),
    "an empty array": Case(".json", b"[ ]"),
    "a packed array": Case(".json.gz", gzip.compress(b"[" + ROW + b"," + ROW + b"]"), 2),
    "an array cut short": Case(
        ".json",
        b"[" + ROW + b"," + ROW + b',{"a": "',
        2,
        error=":3: the file ends inside its array",
    ),
    "an array that does not end": Case(".json", b"[" + ROW, error="ends inside its array"),
    "no objects": Case(
        ".json", b'[1, "a", [], {}, null, NaN]', 1, {"not-an-object": 4, "not-a-number": 1}
    ),
    "a comma too many": Case(".json", b"[" + ROW + b",]", 1, {"empty-element": 1}),
    "a comma first": Case(".json", b"[, {}]", 1, {"empty-element": 1}),
    "two arrays": Case(".json", b"[{}]\n[{}]", 1, error=":2: more data after the end"),
    "a brace for a bracket": Case(".json", b"[{}}", 1, error="a '}' too many"),
    "faults inside elements": Case(
        ".json",
        b'[{"a": [1}}, {"a": 1, "a": 2}, {"a": "\\ud800"}, {"a" 1}, {"a": "\xff"}, {}]',
        1,
        {"not-json": 2, "duplicate-key": 1, "invalid-unicode": 1, "invalid-utf8": 1},
    ),
    "JSON Lines by another name": Case(".json", LINES, error=r"Name the file \.jsonl"),
    "a lone object": Case(".json", b'{\n"data": []}', error="a single object"),
    "a marked array": Case(".json", b"\xef\xbb\xbf[]", error="begins with U"),
    "a text": Case(".json", b'"abc"', error="must be an array of objects"),
    "white space alone": Case(".json", b" \n \n", error="nothing but white space"),
    "an element of 20 MB": Case(
        ".json",
        lambda: b'[{}, {"a": "' + b"x" * 20_000_000 + b'"}]',
        1,
        error="more than 16 MiB",
        chunk_sizes=LARGE_CHUNKS,
    ),
    "an array nested 1,000 deep": Case(
        ".json", b'[{}, {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}]", 1, {"nested-too-deep": 1}
    ),
}

COLUMN_CASES = {
    "Parquet": Case(".parquet", as_parquet(), 3),
    "Parquet cut short": Case(
        ".parquet", as_parquet()[:-30], error=r"cannot be read as \.parquet"
    ),
    "Parquet with a flipped byte": Case(
        ".parquet", flipped(as_parquet(), as_parquet().index(b"text 0")), error="cannot be read"
    ),
    "Parquet without rows": Case(".parquet", as_parquet(table(0))),
    "no Parquet at all": Case(".parquet", NOISE, error="cannot be read"),
    "Parquet with text that is not UTF-8": Case(
        ".parquet", as_parquet(not_utf8()), 2, {"invalid-utf8": 1}
    ),
    "Parquet with equal columns": Case(
        ".parquet",
        as_parquet(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"])),
        error="column 'a' is named twice",
    ),
    "Arrow": Case(".arrow", as_arrow(), 3),
    "Arrow of another schema": Case(".arrow", as_arrow(pa.table({"ids": [[1], [2]]})), 2),
    "Arrow without rows": Case(".arrow", as_arrow(table(0))),
    "Arrow cut between batches": Case(".arrow", as_arrow()[:-8], error="without an end mark"),
    "Arrow with wrong offsets": Case(".arrow", wrong_offsets(), error="cannot be read"),
    "Arrow of three bytes": Case(".arrow", b"abc", error="cannot be read"),
}

CASES = JSON_LINES_CASES | PACKED_CASES | CSV_CASES | JSON_CASES | COLUMN_CASES


def read_until_error(file: SourceFile, chunk_bytes: int) -> tuple[list[Record], str]:
    """The records before the DataError, if there is one, and its text."""
    records: list[Record] = []
    try:
        for chunk in chunks.cut(file, chunk_bytes):
            records += chunks.read(chunk)
    except DataError as error:
        return records, str(error)
    return records, ""


def shown(record: Record) -> tuple[int, str, str]:
    return record.line, record.reason if isinstance(record, Rejected) else "", record.raw


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_has_one_outcome(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / f"file{case.suffix}"
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content())
    file = SourceFile(path, path.name)
    found = [read_until_error(file, size) for size in case.chunk_sizes]
    records, error = found[0]
    assert Counter(r.kind for r in records if isinstance(r, Rejected)) == case.rejected
    assert sum(isinstance(r, RawRow) for r in records) == case.rows
    assert bool(error) == bool(case.error)
    if case.error:
        assert path.name in error
        with pytest.raises(DataError, match=case.error):
            raise DataError(error)
    lines = [record.line for record in records]
    assert lines == sorted(lines)
    for other, other_error in found[1:]:
        assert [shown(r) for r in other] == [shown(r) for r in records]
        assert other_error == error
    for record in records:
        if isinstance(record, Rejected):
            json.loads(record.as_json_line().encode())


SEEDS = {
    ".jsonl": LINES + b'{"a": [1, {"b": "\\u00e9"}]}',
    ".csv": CSV + b'"a ""q"", b\nc",x\r\nd,e',
    ".json": b"[" + ROW + b', {"a": ["]", "\\"", {}]}]\n',
    ".jsonl.gz": gzip.compress(LINES, mtime=0),
    ".csv.zst": zstd(CSV + b'"a",b\n'),
    ".json.gz": gzip.compress(b"[{}, {}]", mtime=0),
    ".arrow": as_arrow(),
    ".parquet": as_parquet(),
}


@st.composite
def damaged(draw: st.DrawFn, suffixes: tuple[str, ...]) -> tuple[str, bytes]:
    """A good file with pieces of it overwritten, put in twice, or left out; or any tokens."""
    suffix = draw(st.sampled_from(suffixes))
    data = SEEDS[suffix]
    if draw(st.booleans()) and suffix in (".jsonl", ".csv", ".json"):
        data = draw(st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        middle = draw(st.sampled_from([b"", data[start:end] * 2]) | st.binary(max_size=4))
        data = data[:start] + middle + data[end:]
    return suffix, data or b" "


TOKENS = [
    *(bytes([byte]) for byte in b'{}[],:"\\ \n\r\ta1-.e\0\xff'),
    *(b'{"a": 1}', b'"a"', b'\\"', b"\r\n", b"null", b"\xef\xbb\xbf", b"\xc3\xa9", b",,", b'""'),
]


def lines_of(record: Record) -> int:
    """Lines of its file that a record stands for; what is rejected here is short, so whole."""
    if isinstance(record, RawRow):
        return len(io.BytesIO(record.data).readlines())
    return record.raw.count("\n") + 1


def assert_nothing_is_lost(suffix: str, data: bytes, records: list[Record]) -> None:
    """Every line is in a record (a good CSV header apart), every element of an array is one."""
    if suffix == ".json":
        with suppress(ValueError):
            assert len(records) == len(json.loads(data))
    if suffix in (".jsonl", ".csv") and records:
        first = records[0].line if suffix == ".csv" else 1
        ends = list(accumulate(map(lines_of, records), initial=first))
        assert [record.line for record in records] == ends[:-1]
        assert ends[-1] == len(io.BytesIO(data).readlines()) + 1


CHECKED = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COLUMNAR = (".arrow", ".parquet")


@given(damaged(tuple(sorted(set(SEEDS) - set(COLUMNAR)))), st.sampled_from([1, 3, 50]))
@CHECKED
def test_any_bytes_end_in_records_or_a_data_error(
    tmp_path: Path, made: tuple[str, bytes], chunk_bytes: int
) -> None:
    suffix, data = made
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    file = SourceFile(path, path.name)
    whole, error = read_until_error(file, chunks.CHUNK_BYTES)
    cut, cut_error = read_until_error(file, chunk_bytes)
    assert error == cut_error
    assert [shown(record) for record in cut] == [shown(record) for record in whole]
    if not error:
        assert_nothing_is_lost(suffix, data, whole)


@given(damaged(COLUMNAR))
@settings(CHECKED, derandomize=True)
def test_any_columns_end_in_rows_or_a_data_error(tmp_path: Path, made: tuple[str, bytes]) -> None:
    """How many rows come before the damage depends on how many are decoded at once."""
    suffix, data = made
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    file = SourceFile(path, path.name)
    whole, error = read_until_error(file, chunks.CHUNK_BYTES)
    cut, cut_error = read_until_error(file, 1)
    assert bool(error) == bool(cut_error)
    if not error:
        assert [shown(record) for record in cut] == [shown(record) for record in whole]
