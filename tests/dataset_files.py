"""The files of a dataset artifact, for tests that need one without running prepare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.data.dataset import schema_of, shard_path
from luthier.data.rows import Split
from luthier.data.summary import Spread

ROW_GROUP_ROWS, SHARD_ROWS = 3, 8


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A message with all its columns."""
    absent = dict.fromkeys(("tool_calls", "tool_call_id", "name"))
    return {"role": role, "content": content} | absent | more


def blank_record(split: str, row: int) -> dict[str, Any]:
    """The columns that say where a row comes from."""
    return {
        "id": f"{split}{row:04x}", "group": None, "split": split, "origin": "data",
        "source_path": f"data/{split}.jsonl", "source_line": row + 1, "tools": None,
        "label": None, "output": None, "prompt_length": 0,
    }  # fmt: skip


def write_split(
    folder: Path, split: Split, records: Sequence[Mapping[str, Any]], *, is_pairs: bool = False
) -> None:
    """Shards of a few rows, in row groups of fewer."""
    schema = schema_of(is_pairs=is_pairs)
    for number, start in enumerate(range(0, len(records), SHARD_ROWS)):
        table = pa.Table.from_pylist(list(records[start : start + SHARD_ROWS]), schema=schema)
        pq.write_table(table, shard_path(folder, split, number), row_group_size=ROW_GROUP_ROWS)


def spread(values: Sequence[int]) -> Spread:
    ordered = sorted(values)
    bins = [0] * (max(ordered).bit_length() + 1)
    for value in ordered:
        bins[value.bit_length()] += 1
    return Spread(
        min=ordered[0], mean=sum(ordered) / len(ordered), p50=ordered[len(ordered) // 2],
        p95=ordered[int(len(ordered) * 0.95)], max=ordered[-1], total=sum(ordered), histogram=bins,
    )  # fmt: skip
