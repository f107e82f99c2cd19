"""Rows of a dataset, read piece by piece: no split is ever in memory as a whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.data.dataset import read_info, split_files
from luthier.data.rows import SPLITS
from luthier.data.summary import DatasetInfo
from luthier.data.tokens import IGNORE_INDEX
from luthier.errors import DataError
from luthier.report import spelling
from luthier.store import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATASET_KINDS = ("dataset", "preferences")
Worst = Literal["length", "supervised"]

_BATCH_ROWS = 4096
_CONVERSATIONS = ("messages", "chosen", "rejected")
_SEARCHED = ("content", "tool_calls")
_PROMPT, _REPLIES = "prompt_ids", ("chosen_ids", "rejected_ids")


def info_of(artifact: Artifact) -> DatasetInfo:
    """dataset.json of an artifact.

    Raises:
        DataError: the artifact is no dataset, or none that this version of Luthier wrote.
    """
    if artifact.kind in DATASET_KINDS:
        return read_info(artifact.path)
    datasets = [ref.ref for ref in artifact.manifest.inputs if ref.kind in DATASET_KINDS]
    hint = f" It was made from {datasets[0]}." if datasets else ""
    raise DataError(f"{artifact.ref} is of kind {artifact.kind}, which has no rows.{hint}")


def split_rows(artifact: Artifact, split: str) -> "SplitRows":
    """The rows of one split of a dataset.

    Raises:
        DataError: the dataset has no such split.
    """
    found = info_of(artifact).splits
    known = next((name for name in SPLITS if name == split and found.get(name)), None)
    if known is None:
        there = ", ".join(f"{name} ({spelling.count(rows)})" for name, rows in found.items())
        raise DataError(f"{artifact.ref} has no {split} rows. It has: {there}.")
    return SplitRows(split_files(artifact.path, known))


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split in its Parquet files (at least one), in order, counted from 0."""

    files: Sequence[Path]

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """File, number of the row group in it, and its rows, of each row group in order."""
        import pyarrow.parquet as pq

        found = []
        for path in self.files:
            with _reading(path), pq.ParquetFile(path) as file:
                facts = file.metadata
                found += [
                    (path, group, facts.row_group(group).num_rows)
                    for group in range(facts.num_row_groups)
                ]
        return found

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.groups)

    @cached_property
    def columns(self) -> list[str]:
        """The columns' names."""
        import pyarrow.parquet as pq

        with _reading(self.files[0]):
            return list(pq.read_schema(self.files[0]).names)

    def spread(self, count: int) -> list[int]:
        """Places of `count` rows at equal distances, all rows when there are fewer."""
        count = min(count, len(self))
        return [number * len(self) // count for number in range(count)]

    def worst(self, by: Worst, count: int) -> list[int]:
        """Places of the longest rows, or of those with the fewest supervised tokens, first."""
        import numpy as np

        is_pair = _PROMPT in self.columns
        measure = _measures(is_pair)[by]
        names = [_PROMPT, *_REPLIES] if is_pair else ["labels"]
        values = np.concatenate([measure(batch) for batch in self._batches(names)])
        order = np.argsort(-values if by == "length" else values, kind="stable")
        return [int(place) for place in order[:count]]

    def containing(self, text: str) -> list[int]:
        """Places of the rows with `text` in a message; upper and lower case are alike."""
        import numpy as np

        names = [name for name in _CONVERSATIONS if name in self.columns]
        start, found = 0, []
        for batch in self._batches(names):
            hits = np.zeros(len(batch), dtype=np.int64)
            for name in names:
                hits += _hits(batch.column(name), text)
            found.append(np.flatnonzero(hits) + start)
            start += len(batch)
        return [int(place) for place in np.concatenate(found)]

    def at(self, places: Iterable[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """These rows with their places, in the order asked for."""
        wanted = list(places)
        found: dict[int, Mapping[str, Any]] = {}
        start = 0
        for path, group, rows in self.groups:
            inside = {place - start for place in wanted if start <= place < start + rows}
            found |= {start + place: row for place, row in _picked(path, group, inside)}
            start += rows
        for place in wanted:
            yield place, found[place]

    def _batches(self, columns: Sequence[str]) -> Iterator[Any]:
        import pyarrow.parquet as pq

        for path in self.files:
            with _reading(path), pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))


def _picked(path: Path, group: int, places: set[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of one row group, read no further than the last of them."""
    import pyarrow.parquet as pq

    if not places:
        return
    start = 0
    with _reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
            for place in sorted(places):
                if start <= place < start + len(batch):
                    yield place, batch.slice(place - start, 1).to_pylist()[0]
            start += len(batch)
            if start > max(places):
                return


def _measures(is_pair: bool) -> "Mapping[Worst, Callable[[Any], NDArray[np.int64]]]":
    """Tokens and supervised tokens of each row of a batch; a preference's as it is trained."""
    if is_pair:
        return {
            "length": lambda batch: _lengths(batch, _PROMPT, *_REPLIES),
            "supervised": lambda batch: _lengths(batch, *_REPLIES),
        }
    return {
        "length": lambda batch: _lengths(batch, "labels"),
        "supervised": lambda batch: _supervised(batch.column("labels")),
    }


def _lengths(batch: Any, *names: str) -> "NDArray[np.int64]":
    """Tokens of each row in all these columns together."""
    import numpy as np
    import pyarrow.compute as pc

    total = np.zeros(len(batch), dtype=np.int64)
    for name in names:
        total += np.asarray(pc.list_value_length(batch.column(name)), dtype=np.int64)
    return total


def _supervised(labels: Any) -> "NDArray[np.int64]":
    import numpy as np

    return _sums(labels, np.asarray(labels.values) != IGNORE_INDEX)


def _hits(conversations: Any, text: str) -> "NDArray[np.int64]":
    """How many messages of each conversation hold the text."""
    import numpy as np
    import pyarrow.compute as pc

    messages = conversations.values
    names = {field.name for field in messages.type}
    found = np.zeros(len(messages), dtype=np.bool_)
    for name in _SEARCHED:
        if name in names:
            texts = pc.struct_field(messages, name)
            hits = pc.match_substring(texts, text, ignore_case=True).fill_null(False)
            found |= hits.to_numpy(zero_copy_only=False)
    return _sums(conversations, found)


def _sums(lists: Any, values: "NDArray[np.bool_]") -> "NDArray[np.int64]":
    """For each list of a list array, how many of its values are true."""
    import numpy as np

    before = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    offsets = np.asarray(lists.offsets)
    sums: NDArray[np.int64] = before[offsets[1:]] - before[offsets[:-1]]
    return sums


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). `luthier verify` says what is damaged."
        ) from error
