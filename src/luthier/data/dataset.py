"""The dataset artifact: written once by `prepare`, read by training and evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from luthier.data.rows import Split
from luthier.data.spool import message_type
from luthier.data.summary import DatasetInfo
from luthier.errors import DataError

if TYPE_CHECKING:
    import datasets

INFO_NAME = "dataset.json"
QUARANTINE_NAME = "quarantine.jsonl"
SCHEMA_NAME = "schema.json"


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


def read_schema(folder: Path) -> str | None:
    """The text of the JSON Schema that the rows' objects follow; None where there is none."""
    path = folder / SCHEMA_NAME
    return path.read_text(encoding="utf-8") if path.exists() else None


def shard_path(folder: Path, split: Split, number: int) -> Path:
    """Where a split's shard of this number is."""
    return folder / f"{split}-{number:05d}.parquet"


def split_files(folder: Path, split: Split) -> list[Path]:
    """The shards of a split in the order of their rows; empty when it has none."""
    return sorted(folder.glob(f"{split}-*.parquet"))


def load_split(
    folder: Path, split: Split, columns: Sequence[str] | None = None
) -> "datasets.Dataset":
    """The rows of one split, in the order of their sources.

    Columns: see `schema_of`. `columns` reads some of them only, which for training on many rows
    saves the memory of their texts.

    Raises:
        DataError: the dataset has no such split.
    """
    files = split_files(folder, split)
    if not files:
        fraction = "" if split == "train" else f", or set prepare.{split}_fraction"
        raise DataError(
            f"{folder}: this dataset has no {split} rows. "
            f"Add a source with split: {split}{fraction}."
        )
    import datasets
    import pyarrow as pa
    import pyarrow.parquet
    from datasets.table import InMemoryTable

    wanted = None if columns is None else list(columns)
    tables = [pyarrow.parquet.read_table(path, columns=wanted) for path in files]
    return datasets.Dataset(InMemoryTable(pa.concat_tables(tables).combine_chunks()))


def schema_of(*, is_pairs: bool) -> Any:
    """The columns of a dataset's shards.

    Of rows: input_ids and labels (lists of equal length; -100: no loss) and prompt_length (tokens
    before the last reply); messages hold the reply last. Of preferences: messages are the prompt,
    chosen and rejected the replies, prompt_ids, chosen_ids and rejected_ids their tokens.
    source_path and source_line say where a row came from, origin whether it is `data`, `replay`
    or `generated` here; slices (the values of `prepare.slice_by`), tools and tool_calls are JSON
    text.
    """
    import pyarrow as pa

    text, ids, messages = pa.string(), pa.list_(pa.int32()), pa.list_(message_type())
    columns = [
        ("id", text),
        ("group", text),
        ("slices", text),
        ("split", text),
        ("origin", text),
        ("source_path", text),
        ("source_line", pa.int64()),
        ("messages", messages),
        ("tools", text),
    ]
    if is_pairs:
        columns += [("chosen", messages), ("rejected", messages)]
        columns += [("prompt_ids", ids), ("chosen_ids", ids), ("rejected_ids", ids)]
    else:
        columns += [("label", text), ("output", text)]
        columns += [("input_ids", ids), ("labels", ids), ("prompt_length", pa.int32())]
    return pa.schema(columns)
