"""What a dataset holds, in numbers: the `counts` of dataset.json."""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from luthier.data.rows import SPLITS, Ledger, Split, Task
from luthier.data.tokens import TokenizedRow

_DECIMALS = 4


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Spread(_Record):
    """How a count of tokens is spread over rows; percentiles are the nearest rank."""

    min: int
    mean: float
    p50: int
    p95: int
    max: int
    total: int


class SplitCounts(_Record):
    """One split: rows, rows a class, tokens a row and those with a loss."""

    rows: int
    classes: dict[str, int] = Field(description="rows of each label, absent ones as 0")
    majority_class_share: float | None = Field(description="accuracy of always saying the largest")
    tokens: Spread
    supervised_tokens: Spread


class DatasetCounts(_Record):
    """Where every record went: read = kept + all of quarantined + all of dropped."""

    read: int
    kept: int
    quarantined: dict[str, int]
    dropped: dict[str, int]
    splits: dict[Split, SplitCounts]


class DatasetInfo(_Record):
    """dataset.json: what the rows are for, how they were tokenised, and the counts."""

    task: Task
    labels: list[str]
    system_prompt: str | None
    splits: dict[Split, int]
    stop_token_ids: list[int]
    max_length_tokens: int
    counts: DatasetCounts


def count(rows: Sequence[TokenizedRow], labels: Sequence[str], ledger: Ledger) -> DatasetCounts:
    """Count what was kept beside what was not."""
    ledger.assert_balanced(len(rows))
    by_split: dict[Split, list[TokenizedRow]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[row.row.split].append(row)
    return DatasetCounts(
        read=ledger.read,
        kept=len(rows),
        quarantined=ledger.quarantined_by_kind,
        dropped=dict(sorted(ledger.dropped.items())),
        splits={split: _count_split(found, labels) for split, found in by_split.items() if found},
    )


def _count_split(rows: Sequence[TokenizedRow], labels: Sequence[str]) -> SplitCounts:
    found = Counter(row.row.label for row in rows)
    classes = {label: found[label] for label in labels}
    return SplitCounts(
        rows=len(rows),
        classes=classes,
        majority_class_share=_share(max(classes.values()), len(rows)) if classes else None,
        tokens=_spread([len(row.input_ids) for row in rows]),
        supervised_tokens=_spread([row.supervised for row in rows]),
    )


def _spread(values: Sequence[int]) -> Spread:
    ordered, size = sorted(values), len(values)
    return Spread(
        min=ordered[0],
        mean=_share(sum(ordered), size),
        p50=ordered[_nearest_rank(50, size)],
        p95=ordered[_nearest_rank(95, size)],
        max=ordered[-1],
        total=sum(ordered),
    )


def _nearest_rank(percent: int, size: int) -> int:
    return -(-percent * size // 100) - 1


def _share(part: int, whole: int) -> float:
    return round(part / whole, _DECIMALS)
