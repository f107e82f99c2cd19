"""The dataset artifact: written once by `prepare`, read by training and evaluation."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from luthier.data.rows import SPLITS, Rejected, Split
from luthier.data.summary import DatasetInfo
from luthier.data.tokens import TokenizedRow
from luthier.errors import DataError
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    import datasets

INFO_NAME = "dataset.json"
QUARANTINE_NAME = "quarantine.jsonl"


def write_dataset(
    folder: Path, rows: Sequence[TokenizedRow], quarantined: Sequence[Rejected], info: DatasetInfo
) -> None:
    """Write a Parquet file for each split that has rows, the quarantine, and dataset.json last."""
    for split in SPLITS:
        found = [row for row in rows if row.row.split == split]
        if found:
            write_atomically(_split_path(folder, split), _parquet(found))
    ordered = sorted(quarantined, key=lambda rejected: (rejected.file, rejected.line))
    write_atomically(
        folder / QUARANTINE_NAME, "".join(rejected.as_json_line() for rejected in ordered)
    )
    write_atomically(folder / INFO_NAME, info.model_dump_json(indent=2) + "\n")


def read_info(folder: Path) -> DatasetInfo:
    """dataset.json of a dataset artifact.

    Raises:
        DataError: the folder holds no dataset that this version of Luthier wrote.
    """
    path = folder / INFO_NAME
    try:
        return DatasetInfo.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: not a dataset of Luthier ({error}). Run luthier prepare."
        ) from error


def load_split(folder: Path, split: Split) -> "datasets.Dataset":
    """The rows of one split, in the order of their sources.

    Columns: id, group, split, messages (list of role and content, the reply last), label,
    source_path, source_line, input_ids and labels (lists of equal length; -100: no loss),
    prompt_length (tokens before the last reply).

    Raises:
        DataError: the dataset has no such split.
    """
    path = _split_path(folder, split)
    if not path.exists():
        fraction = "" if split == "train" else f", or set prepare.{split}_fraction"
        raise DataError(
            f"{folder}: this dataset has no {split} rows. "
            f"Add a source with split: {split}{fraction}."
        )
    import datasets
    import pyarrow.parquet
    from datasets.table import InMemoryTable

    return datasets.Dataset(InMemoryTable(pyarrow.parquet.read_table(path)))


def _split_path(folder: Path, split: Split) -> Path:
    return folder / f"{split}.parquet"


def _parquet(rows: Sequence[TokenizedRow]) -> bytes:
    """Deterministic bytes: a fixed schema, codec and row group size, no metadata of ours."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pydict(_columns(rows), schema=_schema())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        table, buffer, compression="zstd", compression_level=3, row_group_size=65536, version="2.6"
    )
    return buffer.getvalue()


def _columns(rows: Sequence[TokenizedRow]) -> dict[str, list[Any]]:
    return {
        "id": [row.row.id for row in rows],
        "group": [row.row.group for row in rows],
        "split": [row.row.split for row in rows],
        "messages": [list(row.row.messages) for row in rows],
        "label": [row.row.label for row in rows],
        "source_path": [row.row.source_path for row in rows],
        "source_line": [row.row.source_line for row in rows],
        "input_ids": [row.input_ids for row in rows],
        "labels": [row.labels for row in rows],
        "prompt_length": [row.prompt_length for row in rows],
    }


def _schema() -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("group", pa.string()),
            ("split", pa.string()),
            ("messages", pa.list_(message)),
            ("label", pa.string()),
            ("source_path", pa.string()),
            ("source_line", pa.int64()),
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.int32())),
            ("prompt_length", pa.int32()),
        ]
    )
