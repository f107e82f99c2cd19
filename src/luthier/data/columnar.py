"""Parquet and Arrow files, row by row as JSON would hold them.

One process decodes, checks and slices; each chunk goes on as a small Arrow stream of its own,
because a row group of a million rows cannot be read from its middle.

Columns of types that JSON does not know are left where they are; see `arrow_values`.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.data.arrow_values import Fault, check, is_json, marked, may_be_nan
from luthier.data.records import Chunk, OpenFile, Record, reader
from luthier.data.rows import RawRow, Rejected, RowError, escaped
from luthier.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 8192
_DECODED_ROWS = 1024  # rows of Parquet decoded at once, at most
_BUFFER_BYTES = 1 << 20  # read from a Parquet file at once, instead of a whole row group
_FILE_MARK = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow's specification: "EOS"


def _cut_parquet(file: OpenFile) -> Iterator[Chunk]:
    import pyarrow.parquet as parquet

    _refuse_packed(file)
    with _explained(file):
        source = parquet.ParquetFile(
            file.file.path,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        with source:
            schema, metadata = source.schema_arrow, source.metadata
            good, faults = _columns(file, schema)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            row_bytes = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
            decoded = max(1, min(_DECODED_ROWS, 4 * file.chunk_bytes // max(row_bytes, 1)))
            batches = source.iter_batches(batch_size=decoded, columns=good, use_threads=False)
            found = yield from _chunks(file, batches, faults)
            if found != metadata.num_rows:
                raise ValueError(f"{found} rows, where its end names {metadata.num_rows}")


def _cut_arrow(file: OpenFile) -> Iterator[Chunk]:
    import pyarrow as pa

    _refuse_packed(file)
    with _explained(file), pa.OSFile(str(file.file.path)) as source:
        if source.read(len(_FILE_MARK)) == _FILE_MARK:
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(n) for n in range(opened.num_record_batches))
        else:
            source.seek(source.size() - len(_STREAM_END))
            if source.read() != _STREAM_END:
                raise ValueError("it ends without an end mark, so it was cut short")
            source.seek(0)
            opened = batches = pa.ipc.open_stream(source)
        good, faults = _columns(file, opened.schema)
        yield from _chunks(file, (batch.select(good) for batch in batches), faults)


@reader(".parquet", cut=_cut_parquet)
def read_parquet(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """One row of a table a record; its line is the row's number."""
    return _read(chunk, data)


@reader(".arrow", cut=_cut_arrow)
def read_arrow(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """An Arrow IPC file or stream, as `datasets` saves them; a record's line is its row number."""
    return _read(chunk, data)


def _refuse_packed(file: OpenFile) -> None:
    if file.is_packed:
        raise DataError(
            f"{file.file.name}: {file.kind} files are packed inside. Unpack the outer packing."
        )


@contextmanager
def _explained(file: OpenFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OSError, MemoryError, OverflowError) as error:
        raise DataError(
            f"{file.file.name}: cannot be read as {file.kind}: {_first_line(error)}. "
            "It is damaged or something else: write or fetch it again."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _columns(file: OpenFile, schema: "pa.Schema") -> tuple[list[str], dict[str, Fault]]:
    """(columns that can be read, faults of the others)."""
    names = list(schema.names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file.file.name}: column '{twice[0]}' is named twice. Rename one.")
    faults = {
        field.name: Fault(
            "column-type",
            f"'{field.name}' is {field.type}, which JSON does not know; save it as text",
        )
        for field in schema
        if not is_json(field.type)
    }
    return [name for name in names if name not in faults], faults


def _chunks(
    file: OpenFile, batches: "Iterable[pa.RecordBatch]", faults: dict[str, Fault]
) -> Generator[Chunk, None, int]:
    """Slices of the batches, gathered up to a chunk's size; returns the number of rows."""
    gathered: list[Any] = []
    first, rows, size_bytes = 1, 0, 0
    for batch in batches:
        check(batch)
        for part in _slices(batch, file.chunk_bytes):
            full = rows + part.num_rows > CHUNK_ROWS or size_bytes + part.nbytes > file.chunk_bytes
            if gathered and full:
                yield _chunk(file, first, gathered, faults)
                gathered, first, rows, size_bytes = [], first + rows, 0, 0
            gathered.append(part)
            rows += part.num_rows
            size_bytes += part.nbytes
    if gathered:
        yield _chunk(file, first, gathered, faults)
    return first + rows - 1


def _slices(batch: "pa.RecordBatch", chunk_bytes: int) -> "Iterator[pa.RecordBatch]":
    rows = max(1, min(CHUNK_ROWS, batch.num_rows * chunk_bytes // max(batch.nbytes, 1)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _chunk(file: OpenFile, first: int, parts: list[Any], faults: dict[str, Fault]) -> Chunk:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write_batch(part)
    data = sink.getvalue().to_pybytes()
    return Chunk(file.file, file.kind, first, 0, len(data), data, faults)


def _read(chunk: Chunk, data: bytes) -> Iterator[Record]:
    import pyarrow as pa

    name, number = chunk.file.name, chunk.line
    faults: Mapping[str, Fault] = chunk.context
    for batch in pa.ipc.open_stream(data):
        floats = [name for name in batch.schema.names if may_be_nan(batch.column(name))]
        for values in _rows(batch):
            if isinstance(values, UnicodeDecodeError):
                yield _not_utf8(name, number, values)
            else:
                yield RawRow(name, number, marked(values, floats, faults))
            number += 1


def _rows(batch: "pa.RecordBatch") -> Iterator[dict[str, object] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            try:
                yield from batch.slice(place, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error


def _not_utf8(name: str, number: int, error: UnicodeDecodeError) -> Rejected:
    data = bytes(error.object)
    reason = f"byte 0x{data[error.start]:02x} at byte {error.start + 1} of a text"
    return Rejected(name, number, str(RowError("invalid-utf8", reason)), escaped(data))
