"""The spool: tokenised rows on the disk between reading and deciding, one Arrow file a chunk.

A part is complete when its file has its name: an interrupted stage finds and keeps it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.index import RowIndex, array_types, joined, make_index
from luthier.data.rows import Message
from luthier.store.files import temporary_path

if TYPE_CHECKING:
    import pyarrow as pa

    from luthier.data.tokens import Span

_FACTS = b"facts"


@dataclass(frozen=True)
class Spool:
    """A folder of parts, numbered from 0 in the order of reading."""

    folder: Path

    def path(self, part: int) -> Path:
        """Where a part is, or will be."""
        return self.folder / f"{part:06d}.arrow"

    def rejected_path(self, part: int) -> Path:
        """The rejected records of a part, as lines of quarantine.jsonl."""
        return self.folder / f"{part:06d}.rejected.jsonl"

    def has(self, part: int) -> bool:
        """Whether a part is complete."""
        return self.path(part).exists()

    @property
    def parts(self) -> int:
        """How many parts are complete; all, once reading has ended."""
        return sum(1 for _ in self.folder.glob("*.arrow"))

    def write(self, part: int, table: "pa.Table", facts: Mapping[str, Any]) -> None:
        """Write a part and what was counted while it was made."""
        import pyarrow as pa

        table = table.replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
        path = self.path(part)
        temporary = temporary_path(path)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema, options=options) as writer,
        ):
            writer.write_table(table)
        temporary.replace(path)

    def read(self, part: int, columns: Sequence[str] | None = None) -> "pa.Table":
        """A part, or some columns of it."""
        import pyarrow as pa

        with pa.OSFile(str(self.path(part)), "rb") as file:
            reader = pa.ipc.open_file(file)
            if columns is None:
                return reader.read_all()
            wanted = [reader.schema.get_field_index(name) for name in columns]
        with pa.OSFile(str(self.path(part)), "rb") as file:
            options = pa.ipc.IpcReadOptions(included_fields=wanted)
            return pa.ipc.open_file(file, options=options).read_all().select(list(columns))

    def facts(self, part: int) -> dict[str, Any]:
        """What was counted while a part was made."""
        import pyarrow as pa

        with pa.OSFile(str(self.path(part)), "rb") as file:
            metadata = pa.ipc.open_file(file).schema.metadata
        facts: dict[str, Any] = json.loads(metadata[_FACTS])
        return facts

    def index(self) -> RowIndex:
        """The joined index of all parts."""
        return joined([self._part_index(part) for part in range(self.parts)])

    def _part_index(self, part: int) -> RowIndex:
        names = [name for name in array_types() if name != "fate"]
        table = self.read(part, names)
        columns = {name: table[name].combine_chunks().to_numpy() for name in names}
        return make_index(columns, list(self.facts(part)["labels"]))


def messages_array(rows: Sequence[Sequence[Message] | None]) -> "pa.Array":
    """A list<struct> column of conversations; tool calls as JSON text."""
    import pyarrow as pa

    offsets: list[int | None] = [0]
    flat: list[Message] = []
    for row in rows:
        flat.extend(row or ())
        offsets.append(len(flat))
    if all(row is None for row in rows):
        return pa.nulls(len(rows), pa.list_(message_type()))
    calls = [message.get("tool_calls") for message in flat]
    fields = [
        pa.array([message["role"] for message in flat], pa.string()),
        pa.array([message.get("content") for message in flat], pa.string()),
        pa.array([None if call is None else _json(call) for call in calls], pa.string()),
        pa.array([message.get("tool_call_id") for message in flat], pa.string()),
        pa.array([message.get("name") for message in flat], pa.string()),
    ]
    struct = pa.StructArray.from_arrays(fields, fields=list(message_type()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct)


def message_type() -> "pa.DataType":
    """How a message is stored."""
    import pyarrow as pa

    names = ("role", "content", "tool_calls", "tool_call_id", "name")
    return pa.struct([(name, pa.string()) for name in names])


def message_from(stored: Mapping[str, Any]) -> Message:
    """A message as it was before it was stored: only what it has."""
    found = {name: value for name, value in stored.items() if value is not None}
    if "tool_calls" in found:
        found["tool_calls"] = json.loads(found["tool_calls"])
    return found


def ids_array(rows: Sequence[Sequence[int]]) -> "pa.Array":
    """A list<int32> column."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.array(list(chain.from_iterable(rows)), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def spans_array(rows: "Sequence[Sequence[Span]]") -> "pa.Array":
    """A list<int32> column: first and behind-last position of each span, one after another."""
    import pyarrow as pa

    flat = [[edge for span in spans for edge in span] for spans in rows]
    return pa.array(flat, pa.list_(pa.int32()))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
