"""Which rows go through the model together, and as which tensors.

B rows of a batch, T tokens of its longest row.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor


class LengthSortedBatches:
    """Batches of rows of similar length; their order, not their content, changes with the epoch.

    A batch holds `rows` rows, or as many as fit `tokens` padded tokens. Two runs with the same
    lengths, limits and seed see the same batches in the same order, wherever they start.
    """

    def __init__(
        self, lengths: Sequence[int], *, rows: int | None, tokens: int | None, seed: int
    ) -> None:
        """Raises ValueError when not exactly one of `rows` and `tokens` is given."""
        if (rows is None) == (tokens is None):
            raise ValueError("give either rows or tokens a batch")
        self._seed, self._epoch = seed, 0
        shuffled = list(range(len(lengths)))
        random.Random(seed).shuffle(shuffled)
        by_length = sorted(shuffled, key=lambda row: lengths[row])
        self._batches = list(_cut(by_length, lengths, rows, tokens))
        self.drop_last = False
        self.batch_size = rows or max(map(len, self._batches))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._batches)
        random.Random(f"{self._seed}/{self._epoch}").shuffle(order)
        return iter(order)


def _cut(
    order: Sequence[int], lengths: Sequence[int], rows: int | None, tokens: int | None
) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in order:
        # Rows come in ascending length, so the newest one sets the padded width.
        full = len(batch) == rows if rows else (len(batch) + 1) * lengths[row] > (tokens or 0)
        if batch and full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass(frozen=True)
class PaddedCollator:
    """Rows of `input_ids` and `labels` to right-padded tensors of shape (B, T)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> "dict[str, Tensor]":
        """`input_ids`, `attention_mask` and `labels` of one batch."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        labels_BT = torch.full((len(rows), width), IGNORE_INDEX, dtype=torch.long)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[i, :length] = torch.as_tensor(row["input_ids"])
            labels_BT[i, :length] = torch.as_tensor(row["labels"])
            mask_BT[i, :length] = 1
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
