"""The numbers of dataset.json, from the index."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from luthier.data import decisions
from luthier.data.index import RowIndex
from luthier.data.reading import Reading
from luthier.data.rows import SPLITS, Split
from luthier.data.summary import DatasetCounts, SplitCounts, Spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DECIMALS = 4


def count(index: RowIndex, labels: list[str], reading: Reading) -> DatasetCounts:
    """Where every record went."""
    classes = decisions.class_counts(index, labels) if labels else {}
    counts = DatasetCounts(
        read=reading.read,
        generated=reading.generated,
        kept=int(index.kept.sum()),
        quarantined=_sum(reading.rejected, decisions.left_out(index, faults=True)),
        dropped=_sum(reading.dropped, decisions.left_out(index, faults=False)),
        changed=dict(sorted(reading.changed.items())),
        splits={
            split: _split(index, split, classes.get(split, {}))
            for split in SPLITS
            if index.inside(split).any()
        },
    )
    decisions.assert_balanced(counts)
    return counts


def _sum(*counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for found in counts:
        total.update(found)
    return dict(sorted(total.items()))


def _split(index: RowIndex, split: Split, classes: dict[str, int]) -> SplitCounts:
    rows = index.inside(split)
    share = decisions.majority_share(classes)
    return SplitCounts(
        rows=int(rows.sum()),
        classes=classes,
        majority_class_share=None if share is None else round(share, _DECIMALS),
        tokens=spread(index.tokens[rows]),
        supervised_tokens=spread(index.supervised[rows]),
    )


def spread(values: "NDArray[Any]") -> Spread:
    """How counts are spread; percentiles are the nearest rank. There must be at least one."""
    import numpy as np

    ordered = np.sort(values)
    bins = np.zeros(32, dtype=np.int64)
    places, rows = np.unique(np.frexp(ordered.astype(np.float64))[1], return_counts=True)
    bins[places] = rows  # frexp's exponent of n is the number of its binary digits
    return Spread(
        min=int(ordered[0]),
        mean=round(float(ordered.mean()), _DECIMALS),
        p50=int(ordered[_nearest_rank(50, len(ordered))]),
        p95=int(ordered[_nearest_rank(95, len(ordered))]),
        max=int(ordered[-1]),
        total=int(ordered.sum(dtype=np.int64)),
        histogram=np.trim_zeros(bins, "b").tolist(),
    )


def _nearest_rank(percent: int, size: int) -> int:
    return -(-percent * size // 100) - 1
