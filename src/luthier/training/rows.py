"""The tokenised rows of a dataset, as training reads them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import load_split, split_files
from luthier.training.batches import row_lengths

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on and, where the dataset has them, rows to validate on."""

    train: "datasets.Dataset"
    validation: "datasets.Dataset | None"

    @classmethod
    def load(cls, dataset: Path) -> "TrainingRows":
        """The token columns of a dataset artifact."""
        train = load_split(dataset, "train", COLUMNS)
        if not split_files(dataset, "validation"):
            return cls(train, None)
        return cls(train, load_split(dataset, "validation", COLUMNS))

    @cached_property
    def lengths(self) -> "NDArray[np.int64]":
        """Tokens of each training row."""
        return row_lengths(self.train)

    @cached_property
    def supervised(self) -> "NDArray[np.int64]":
        """Tokens of each training row that have a label."""
        import numpy as np
        import pyarrow.compute as pc

        labels = self.train.data.column("labels")
        trained = _numbers(pc.list_flatten(labels)) >= 0
        ends = np.cumsum(_numbers(pc.list_value_length(labels)))
        counts = np.concatenate([[0], np.cumsum(trained)])
        found: NDArray[np.int64] = counts[ends] - counts[np.concatenate([[0], ends[:-1]])]
        return found


def _numbers(column: Any) -> "NDArray[np.int64]":
    numbers: NDArray[np.int64] = column.to_numpy().astype("int64")
    return numbers
