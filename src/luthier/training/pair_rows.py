"""The tokenised pairs of a preferences artifact, as training reads them.

A pair is one row of tokens: the prompt, the chosen reply, the rejected reply.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import load_split, split_files
from luthier.data.rows import Split
from luthier.errors import DataError
from luthier.training.rows import TrainingRows

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
# Of a pair, log p under the reference: chosen up to the length of the shorter reply, chosen beyond
# it, rejected up to it, rejected beyond it.
REFERENCE = "reference"


@dataclass(frozen=True)
class PairRows(TrainingRows):
    """Pairs to train on, and held-out pairs to measure on.

    Columns: `input_ids` (prompt, chosen, rejected), `prompt_tokens`, `chosen_tokens`.
    """

    @classmethod
    def load(cls, dataset: Path) -> "PairRows":
        """The pairs of a preferences artifact.

        Raises:
            DataError: it has no held-out pairs.
        """
        if not split_files(dataset, "validation"):
            raise DataError(
                "dpo measures on held-out pairs whether the model learned to tell replies apart, "
                "and the preferences have none. Give preferences a source with split: validation, "
                "or set preferences.validation_fraction."
            )
        return cls(_load(dataset, "train"), _load(dataset, "validation"))

    @cached_property
    def supervised(self) -> "NDArray[np.int64]":
        """Tokens of both replies of each training pair."""
        import numpy as np

        prompts: NDArray[np.int64] = np.asarray(self.train["prompt_tokens"], dtype=np.int64)
        return self.lengths - prompts

    def with_reference(self, train: Any, validation: Any) -> "PairRows":
        """These rows with the log-probabilities under the reference; (pairs, 4) float32 each."""
        assert self.validation is not None, "load sees to it"
        return PairRows(
            self.train.add_column(REFERENCE, train.tolist()),
            self.validation.add_column(REFERENCE, validation.tolist()),
        )


def _load(dataset: Path, split: Split) -> "datasets.Dataset":
    import datasets
    import numpy as np
    import pyarrow as pa

    table = load_split(dataset, split, _TOKENS).data.table.combine_chunks()
    parts = [table[name].combine_chunks() for name in _TOKENS]
    lengths_3n = [np.diff(part.offsets.to_numpy()) for part in parts]
    ends_n = np.sum(lengths_3n, axis=0).cumsum()
    offsets = np.concatenate([[0], ends_n]).astype(np.int32)
    ids = np.empty(int(offsets[-1]), dtype=np.int32)
    starts_n = offsets[:-1]
    for part, lengths_n in zip(parts, lengths_3n, strict=True):
        within = np.arange(int(lengths_n.sum())) - np.repeat(
            lengths_n.cumsum() - lengths_n, lengths_n
        )
        ids[np.repeat(starts_n, lengths_n) + within] = part.flatten().to_numpy()
        starts_n = starts_n + lengths_n
    return datasets.Dataset(
        datasets.table.InMemoryTable(
            pa.table(
                {
                    "input_ids": pa.ListArray.from_arrays(offsets, ids),
                    "prompt_tokens": lengths_3n[0].astype(np.int32),
                    "chosen_tokens": lengths_3n[1].astype(np.int32),
                }
            )
        )
    )
