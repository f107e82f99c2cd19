"""The rows of one part of the spool as an Arrow table, with the columns of the index."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.data.index import NO_LABEL
from luthier.data.keys import KEY_BYTES, group_key
from luthier.data.rendering import Sheet
from luthier.data.rows import SPLITS, Parsed, RawRow, Split
from luthier.data.spool import ids_array, messages_array, spans_array
from luthier.data.tokens import EncodedRow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(slots=True)
class Found:
    """A record that its format understood."""

    record: RawRow
    parsed: Parsed
    group: str | None
    slices: str | None
    time: float
    origin: str


@dataclass(slots=True)
class Line:
    """A row that is rendered: with what it came from, and its keys."""

    found: Found
    keys: tuple[bytes, bytes, bytes, bytes]
    sheets: list[Sheet]


def part_table(
    lines: Sequence[Line], rows: Sequence[EncodedRow], split: Split, source: int, *, raw: bool
) -> "pa.Table":
    """Some rows of a part as the spool keeps them; `with_label_codes` completes them."""
    import pyarrow as pa

    parsed = [line.found.parsed for line in lines]
    count = len(lines)
    columns = {
        "id": pa.array([line.keys[0] for line in lines], pa.binary(16)),
        "group": pa.array([line.found.group for line in lines], pa.string()),
        "slices": pa.array([line.found.slices for line in lines], pa.string()),
        "origin": pa.array([line.found.origin for line in lines], pa.string()),
        "source_line": pa.array([line.found.record.line for line in lines], pa.int64()),
        "messages": messages_array([row.messages for row in parsed]),
        "chosen": messages_array([row.chosen for row in parsed]),
        "rejected": messages_array([row.rejected for row in parsed]),
        "tools": pa.array([_tools(row) for row in parsed], pa.string()),
        "label_text": pa.array([row.label for row in parsed], pa.string()),
        "output": pa.array([row.output for row in parsed], pa.string()),
        "raw": pa.array([line.found.record.raw if raw else None for line in lines], pa.string()),
        "id_key": _uint64([line.keys[0][:KEY_BYTES] for line in lines]),
        "prompt_key": _uint64([line.keys[1][:KEY_BYTES] for line in lines]),
        "target_key": _uint64([line.keys[2][:KEY_BYTES] for line in lines]),
        "mirror_key": _uint64([line.keys[3][:KEY_BYTES] for line in lines]),
        "group_key": pa.array([group_key(line.found.group) for line in lines], pa.uint64()),
        "time": pa.array([line.found.time for line in lines], pa.float64()),
        "split": pa.array([SPLITS.index(split)] * count, pa.uint8()),
        "source": pa.array([source] * count, pa.int16()),
        "tokens": pa.array([row.tokens for row in rows], pa.int32()),
        "supervised": pa.array([row.supervised for row in rows], pa.int32()),
        "flags": pa.array([row.flags for row in rows], pa.uint8()),
    }
    return pa.table(columns | _token_columns(rows))


def with_label_codes(table: "pa.Table") -> "tuple[pa.Table, list[str]]":
    """A part with the number of each row's label, and the labels in the order of the numbers."""
    import pyarrow.compute as pc

    found = table["label_text"].combine_chunks().dictionary_encode()
    codes = pc.fill_null(found.indices, NO_LABEL)
    return table.append_column("label", codes), found.dictionary.to_pylist()


def largest_id(table: "pa.Table") -> int:
    """The largest token id in a part, rejected replies included."""
    import pyarrow.compute as pc

    both = (pc.list_flatten(table[name]) for name in ("input_ids", "rejected_ids"))
    return max(int(pc.max(flat).as_py() or 0) for flat in both)


def _token_columns(rows: Sequence[EncodedRow]) -> "dict[str, pa.Array]":
    """The tokens of a part: of the first text, and of a preference the second one's reply."""
    import pyarrow as pa

    first = [row.texts[0] for row in rows]
    columns = {
        "input_ids": ids_array([text.input_ids for text in first]),
        "spans": spans_array([text.spans for text in first]),
        "prompt_length": pa.array([text.prompt_length for text in first], pa.int32()),
    }
    second = [row.texts[1] for row in rows if len(row.texts) > 1]
    rejected = [text.input_ids[text.prompt_length :] for text in second]
    columns["rejected_ids"] = ids_array(rejected if second else [()] * len(rows))
    return columns


def _tools(row: Parsed) -> str | None:
    return None if row.tools is None else json.dumps(list(row.tools), ensure_ascii=False)


def _uint64(keys: Sequence[bytes]) -> "pa.Array":
    import numpy as np
    import pyarrow as pa

    return pa.array(np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64))
