"""Parquet and Arrow: values as JSON would hold them, faults only where a column is asked for."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from luthier.data import chunks
from luthier.data.records import SourceFile
from luthier.data.rows import RawRow, RowError
from test_data_readers import read_all

COLUMNS = {
    "text": pa.array(["a", "b", "c"]),
    "time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 3),
    "score": pa.array([1.0, math.nan, None]),
    "list": pa.array([[1.5, math.inf], None, []]),
    "half": pa.array([1.0, 2.0, 3.0], pa.float16()),
    "word": pa.array(["x", "y", "x"]).dictionary_encode(),
    "pair": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64(), 2)),
    "messages": pa.array([[{"role": "user", "content": "é"}], None, []]),
    "image": pa.array([{"bytes": b"\x00", "path": None}] * 3),
}


def write_columns(path: Path, kind: str, table: pa.Table) -> None:
    if kind == "parquet":
        return parquet.write_table(table, path)
    opener = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return None


@pytest.mark.parametrize("chunk_bytes", [1, chunks.CHUNK_BYTES])
@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columns_come_out_as_json_would_hold_them(
    tmp_path: Path, kind: str, chunk_bytes: int
) -> None:
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    write_columns(path, kind, pa.table(COLUMNS))
    first, second, third = read_all(SourceFile(path, path.name), chunk_bytes)
    assert [first.line, second.line, third.line] == [1, 2, 3]
    assert isinstance(first, RawRow)
    assert isinstance(second, RawRow)
    assert isinstance(third, RawRow)
    wanted = {"text": "a", "half": 1.0, "word": "x", "pair": [1, 2], "score": 1.0}
    assert {name: first.values[name] for name in wanted} == wanted
    assert first.values["messages"] == [{"role": "user", "content": "é"}]
    assert (second.values["list"], second.values["messages"]) == (None, None)
    assert third.values["score"] is None
    assert third.values.get("list") == []
    assert third.values.get("nothing") is None
    for row, column, fault in [
        (first, "time", "column-type: 'time' is timestamp"),
        (first, "image", "column-type: 'image' is struct"),
        (first, "list", "not-a-number: 'list'"),
        (second, "score", "not-a-number: 'score'"),
    ]:
        assert column in row.values
        with pytest.raises(RowError, match=fault):
            row.values[column]
        with pytest.raises(RowError, match=fault):
            row.values.get(column)
    assert '"text": "a"' in first.raw


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_rows_of_columns_that_json_does_not_know_are_still_counted(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    write_columns(path, kind, pa.table({"time": COLUMNS["time"]}))
    assert len(read_all(SourceFile(path, path.name))) == 3


@pytest.mark.parametrize("rows", [1, 8192, 20_000])
def test_a_large_row_group_is_read_in_slices(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"n": range(rows)}), path, row_group_size=rows)
    found = list(chunks.cut(SourceFile(path, "a.parquet")))
    assert len(found) == -(-rows // 8192)
    records = [record for chunk in found for record in chunks.read(chunk)]
    assert [record.line for record in records] == list(range(1, rows + 1))
    assert [r.values["n"] for r in records if isinstance(r, RawRow)] == list(range(rows))
