"""JSON Lines, strictly: one object a line, and nothing that JSON does not know."""

from collections.abc import Iterator
from io import BytesIO

from luthier.data.lines import cut_lines
from luthier.data.records import Chunk, Record, reader
from luthier.data.rows import RawRow, Rejected, RowError, escaped
from luthier.data.strict_json import JsonSyntaxError, is_plain, json_object


@reader(".jsonl", ".ndjson", cut=cut_lines)
def read_json_lines(chunk: Chunk, data: bytes) -> Iterator[Record]:
    """One JSON object a line (RFC 8259, UTF-8 without byte order mark)."""
    name, plain = chunk.file.name, is_plain(data)
    for number, line in enumerate(BytesIO(data), start=chunk.line):
        try:
            values = json_object(line, plain)
        except RowError as error:
            yield Rejected(name, number, str(_perhaps_cut_short(error, line)), escaped(line))
        else:
            yield RawRow(name, number, values, line)


def _perhaps_cut_short(error: RowError, line: bytes) -> RowError:
    if isinstance(error, JsonSyntaxError) and not line.endswith(b"\n"):
        return RowError("truncated-line", f"the file ends inside a record ({error.detail})")
    return error
