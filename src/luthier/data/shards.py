"""From the spool to the dataset: kept rows as Parquet shards, unusable ones as quarantine lines.

What is written is measured as it is written, from its labels alone.
"""

import json
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import QUARANTINE_NAME, schema_of, shard_path
from luthier.data.index import Flag, RowIndex
from luthier.data.rows import SPLITS, Rejected, Split
from luthier.data.spool import Spool
from luthier.data.tokens import IGNORE_INDEX
from luthier.data.workers import Workers
from luthier.store.artifact import Workspace
from luthier.store.files import fsync_file, temporary_path

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_SHARD_ROWS = 65536  # read; a shard holds those of them that are kept


@dataclass(frozen=True)
class Target:
    """What all jobs of a dataset share: where from, where to, and what ends a reply."""

    spool: Spool
    folder: Path
    stop_token_ids: tuple[int, ...]
    is_pairs: bool


@dataclass(frozen=True)
class ShardJob:
    """Some parts that become one shard of each split that they have rows of."""

    target: Target
    number: int
    parts: tuple[int, ...]
    places: "tuple[NDArray[np.int8], ...]"  # for each part, the split of every row, -1: left out
    faults: tuple[Mapping[int, str], ...]  # for each part, why rows of it are unusable


@dataclass(frozen=True)
class Written:
    """What a job wrote: quarantine lines of each part, and the flags of each part's rows."""

    quarantine: list[Path]
    flags: "list[NDArray[np.uint8]]"


def shard_jobs(
    target: Target,
    places: "NDArray[np.int8]",
    faults: Mapping[int, str],
    sizes: Sequence[int],
) -> Iterator[ShardJob]:
    """The work of writing a dataset, cut where enough rows have been read.

    Args:
        places: for every row read, the position of its split in SPLITS, or -1 when it is left out.
        faults: for rows that are left out as unusable, the reason.
        sizes: rows of every part.
    """
    starts = list(accumulate(sizes, initial=0))
    faults_of: list[dict[int, str]] = [{} for _ in sizes]
    for row, reason in faults.items():
        part = bisect_right(starts, row) - 1
        faults_of[part][row - starts[part]] = reason
    first = number = 0
    for part in range(len(sizes)):
        if starts[part + 1] - starts[first] < _SHARD_ROWS and part + 1 < len(sizes):
            continue
        parts = tuple(range(first, part + 1))
        yield ShardJob(
            target,
            number,
            parts,
            tuple(places[starts[p] : starts[p + 1]] for p in parts),
            tuple(faults_of[p] for p in parts),
        )
        first, number = part + 1, number + 1


def write_shard(job: ShardJob) -> Written:
    """Write the shards of a job and its parts' quarantine lines, and look at what was written."""
    shards = _Shards(job)
    written = Written([], [])
    try:
        for part, places, faults in zip(job.parts, job.places, job.faults, strict=True):
            spool = job.target.spool
            table, file = spool.read(part), spool.facts(part)["file"]
            merged = _quarantine(spool.rejected_path(part), table, file, faults)
            written.quarantine.append(merged)
            written.flags.append(shards.add(table, places, file))
    finally:
        shards.close()
    shards.keep()
    return written


def write_shards(
    target: Target,
    index: RowIndex,
    faults: Mapping[int, str],
    sizes: Sequence[int],
    pool: Workers,
    workspace: Workspace,
) -> None:
    """Shards of every split, and quarantine.jsonl. What they hold is measured into `index.flags`.

    Raises:
        InterruptedRunError: a stop was requested.
    """
    import numpy as np

    places = np.where(index.kept, index.split.astype(np.int8), np.int8(-1))
    flags = []
    quarantine = workspace.scratch / QUARANTINE_NAME
    with (
        workspace.reporter.task("writing", len(sizes), "parts") as task,
        quarantine.open("wb") as out,
    ):
        for written in pool.map(write_shard, shard_jobs(target, places, faults, sizes)):
            workspace.raise_if_stopped()
            for path in written.quarantine:
                with path.open("rb") as lines:
                    shutil.copyfileobj(lines, out)
            flags += written.flags
            task.advance(len(written.flags))
    index.flags |= np.concatenate(flags)
    fsync_file(quarantine)
    quarantine.replace(target.folder / QUARANTINE_NAME)


class _Shards:
    """The open shards of a job, one a split."""

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        self._writers: dict[Path, Any] = {}

    def add(self, table: "pa.Table", places: "NDArray[np.int8]", file: str) -> "NDArray[np.uint8]":
        """Write the kept rows of a part to their splits; the flags of all its rows."""
        import numpy as np
        import pyarrow as pa

        flags = np.zeros(len(places), dtype=np.uint8)
        for number, split in enumerate(SPLITS):
            here = places == number
            if not here.any():
                continue
            rows = table.filter(pa.array(here))
            final = final_columns(rows, split, file, is_pairs=self._job.target.is_pairs)
            flags[here] = measured_flags(final, self._job.target.stop_token_ids)
            self._writer(split, final.schema).write_table(final)
        return flags

    def _writer(self, split: Split, schema: "pa.Schema") -> Any:
        import pyarrow.parquet as parquet

        path = shard_path(self._job.target.folder, split, self._job.number)
        if path not in self._writers:
            self._writers[path] = parquet.ParquetWriter(
                temporary_path(path),
                schema,
                compression="zstd",
                compression_level=1,
                version="2.6",
                use_dictionary=["split", "origin", "label", "source_path", "labels.list.element"],
            )
        return self._writers[path]

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()

    def keep(self) -> None:
        """Give complete files their names."""
        for path in self._writers:
            temporary = temporary_path(path)
            fsync_file(temporary)
            temporary.replace(path)


def measured_flags(rows: "pa.Table", stop_token_ids: Sequence[int]) -> "NDArray[np.uint8]":
    """F01 and F03 of final rows, from their labels alone: `Flag` bits a row.

    Every stretch of tokens with a loss must end with a stop token, and there must be one.
    """
    import numpy as np

    flags = np.zeros(rows.num_rows, dtype=np.uint8)
    if "labels" not in rows.column_names:
        for name in ("chosen_ids", "rejected_ids"):
            flags |= _flags_of(rows[name].combine_chunks(), stop_token_ids)
        return flags
    return _flags_of(rows["labels"].combine_chunks(), stop_token_ids)


def _flags_of(labels: "pa.ListArray", stop_token_ids: Sequence[int]) -> "NDArray[np.uint8]":
    import numpy as np

    flat = labels.flatten().to_numpy()
    lengths = np.diff(labels.offsets.to_numpy())
    row = np.repeat(np.arange(len(labels)), lengths)
    learned = flat != IGNORE_INDEX
    is_end = learned.copy()
    is_end[:-1] &= ~learned[1:] | (row[1:] != row[:-1])
    broken = is_end & ~np.isin(flat, stop_token_ids)
    flags = np.full(len(labels), Flag.NOTHING_SUPERVISED, dtype=np.uint8)
    flags[row[learned]] = 0
    flags[row[broken]] |= np.uint8(Flag.STOP_MISSING)
    return flags


def _quarantine(path: Path, table: "pa.Table", file: str, faults: Mapping[int, str]) -> Path:
    """The unusable records of a part in the order of their lines, as lines of a file.

    `path` holds those that were rejected when the part was made.
    """
    if not faults:
        return path
    late = [
        Rejected(file, table["source_line"][row].as_py(), reason, table["raw"][row].as_py() or "")
        for row, reason in sorted(faults.items())
    ]
    with path.open(encoding="utf-8", newline="\n") as lines:  # str.splitlines cuts at U+2028 too
        early = list(lines)
    found = [(json.loads(line)["line"], line) for line in early]
    found += [(rejected.line, rejected.as_json_line()) for rejected in late]
    merged = path.with_name(path.name.replace("rejected", "quarantine"))
    merged.write_text("".join(line for _, line in sorted(found)), encoding="utf-8")
    return merged


def final_columns(rows: "pa.Table", split: Split, file: str, *, is_pairs: bool) -> "pa.Table":
    """Rows of the spool with the columns that a dataset has."""
    import pyarrow as pa

    count = rows.num_rows
    columns = {
        "id": pa.array([i.hex() for i in rows["id"].to_pylist()], pa.string()),
        "group": rows["group"],
        "slices": rows["slices"],
        "split": pa.array([split] * count, pa.string()),
        "origin": rows["origin"],
        "source_path": pa.array([file] * count, pa.string()),
        "source_line": rows["source_line"],
        "messages": rows["messages"],
        "tools": rows["tools"],
        "label": rows["label_text"],
        "output": rows["output"],
    }
    columns |= _pair_columns(rows) if is_pairs else _token_columns(rows)
    schema = schema_of(is_pairs=is_pairs)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _token_columns(rows: "pa.Table") -> "dict[str, Any]":
    ids = rows["input_ids"].combine_chunks()
    return {
        "input_ids": ids,
        "labels": _labels(ids, rows["spans"].combine_chunks()),
        "prompt_length": rows["prompt_length"],
    }


def _labels(ids: "pa.ListArray", spans: "pa.ListArray") -> "pa.ListArray":
    """The ids inside a row's spans, IGNORE_INDEX elsewhere."""
    import numpy as np
    import pyarrow as pa

    flat = ids.flatten().to_numpy()
    offsets = ids.offsets.to_numpy() - ids.offsets[0].as_py()
    counts = np.diff(spans.offsets.to_numpy())
    edges = spans.flatten().to_numpy() + np.repeat(offsets[:-1], counts)
    steps = np.zeros(len(flat) + 1, dtype=np.int32)
    np.add.at(steps, edges[0::2], 1)
    np.add.at(steps, edges[1::2], -1)
    inside = np.cumsum(steps[:-1]) > 0
    labels = np.where(inside, flat, np.int32(IGNORE_INDEX))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(labels))


def _pair_columns(rows: "pa.Table") -> "dict[str, Any]":
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, lengths = rows["input_ids"].to_pylist(), rows["prompt_length"].to_pylist()
    prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    chosen = [row[length:] for row, length in zip(ids, lengths, strict=True)]
    kind = pa.list_(pa.int32())
    return {
        "chosen": rows["chosen"],
        "rejected": rows["rejected"],
        "prompt_ids": pa.array(prompts, kind),
        "chosen_ids": pa.array(chosen, kind),
        "rejected_ids": pc.cast(rows["rejected_ids"], kind),
    }
