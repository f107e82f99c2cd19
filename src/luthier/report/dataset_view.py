"""What the page shows of a dataset: where every record went, the classes, the lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.data.dataset import read_info
from luthier.data.summary import DatasetInfo
from luthier.report.plots import Plot, tokens_plot
from luthier.store import Artifact


@dataclass(frozen=True)
class DatasetView:
    """One dataset: its info, why records are not in it, its classes by split, and the lengths."""

    info: DatasetInfo
    splits: Sequence[str]
    losses: Sequence[tuple[str, str, int]]
    classes: Mapping[str, Sequence[int]]
    plot: Plot | None


def dataset_view(dataset: Artifact) -> DatasetView:
    """Read dataset.json, and from the Parquet files the length of every row."""
    info = read_info(dataset.path)
    splits: list[str] = list(info.counts.splits)
    losses = [("quarantined", why, rows) for why, rows in info.counts.quarantined.items()]
    losses += [("dropped", why, rows) for why, rows in info.counts.dropped.items()]
    lengths = {split: _lengths(dataset, split) for split in splits}
    return DatasetView(
        info=info,
        splits=splits,
        losses=losses,
        classes={
            label: [found.classes.get(label, 0) for found in info.counts.splits.values()]
            for label in info.labels
        },
        plot=tokens_plot(lengths, info.max_length_tokens),
    )


def _lengths(dataset: Artifact, split: str) -> list[int]:
    """Tokens of each row of a split."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = dataset.path / f"{split}.parquet"
    if not path.exists():
        return []
    ids = pq.read_table(path, columns=["input_ids"])["input_ids"]
    lengths: list[int] = pc.list_value_length(ids).to_pylist()
    return lengths
