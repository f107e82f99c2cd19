"""Which rows go through the model together, and as which tensors.

n rows in all. Of a batch: B rows, T tokens of its longest row, N pairs of (row, position) whose
next token is supervised, K different positions among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.data.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    Integers = NDArray[Any]

# Below this many tokens, two forward passes cost more than they save.
MIN_SHARED_PREFIX_TOKENS = 8
# Rows are exchangeable within a 16th of an octave of length: at most 6 % of padding.
PADDED_STEPS_PER_OCTAVE = 16


class RowBatches:
    """Batches of row numbers; which rows of like length share one is dealt anew every epoch.

    The epoch and the number of batches to skip say everything: no state. The number of batches is
    the same in every epoch. The heaviest batch opens epoch 0, so that memory runs out at the first
    step or never. Random bits are PCG64's, which NumPy keeps stable between versions.

    Attributes:
        batch_size: None, which tells accelerate that batches vary in size; with a number, its
            BatchSamplerShard (1.15, data_loader.py) drops every round that ends in a smaller one.
        drop_last: False, for the same reader.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self, widths_n: "Integers", starts: "Integers", slots_n: "Integers | None", *, seed: int
    ) -> None:
        """Batch b holds `slots_n[starts[b]:starts[b + 1]]`, numbers of rows in ascending width;
        without `slots_n`, those numbers themselves. Rows of equal width are exchangeable."""
        import numpy as np

        self._widths_n, self._starts, self._slots_n = widths_n, starts, slots_n
        self._seed, self._epoch = seed, 0
        dealt = self._rows_of_epoch(0)
        weights = np.add.reduceat(widths_n[dealt], starts[:-1])
        self._heaviest = int(np.argmax(weights))

    def set_epoch(self, epoch: int) -> None:
        """Choose the dealing of this epoch; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        import numpy as np

        epoch = self._epoch
        rows_n = self._rows_of_epoch(epoch)
        order = np.argsort(self._random(len(self), epoch, stream=1), kind="stable")
        if epoch == 0:
            first = order == self._heaviest
            order = np.concatenate([order[first], order[~first]])
        for batch in order:
            yield rows_n[self._starts[batch] : self._starts[batch + 1]].tolist()

    def _rows_of_epoch(self, epoch: int) -> "Integers":
        import numpy as np

        ties_n = self._random(len(self._widths_n), epoch, stream=0)
        ascending_n = np.lexsort((ties_n, self._widths_n))
        return ascending_n if self._slots_n is None else ascending_n[self._slots_n]

    def _random(self, count: int, epoch: int, *, stream: int) -> "Integers":
        import numpy as np

        return np.random.PCG64([self._seed, epoch, stream]).random_raw(count)


class LengthSortedBatches(RowBatches):
    """Batches of rows of like length: `rows` rows each, or as many as fit `tokens` padded tokens.

    With `by_length` off, of any rows, each as wide as the longest of all. A row longer than
    `tokens` is a batch of its own. Where the number of batches is no multiple of `multiple_of`,
    the largest are halved: with processes x accumulation given, every optimizer step of every
    process is full, and no row is repeated or dropped.
    """

    def __init__(
        self,
        lengths: "ArrayLike",
        *,
        rows: int | None,
        tokens: int | None,
        seed: int,
        multiple_of: int = 1,
        by_length: bool = True,
    ) -> None:
        """Raises ValueError when not exactly one of `rows` and `tokens` is given, and when there
        are fewer rows than `multiple_of`."""
        import numpy as np

        if (rows is None) == (tokens is None):
            raise ValueError("give either rows or tokens a batch")
        widths_n = rounded_widths(lengths, PADDED_STEPS_PER_OCTAVE, tokens)
        if not by_length:
            widths_n = np.full_like(widths_n, widths_n.max())
        if rows is not None:
            starts = np.append(np.arange(0, len(widths_n), rows), len(widths_n))
        else:
            assert tokens is not None
            starts = _cut_by_tokens(np.sort(widths_n), tokens)
        super().__init__(widths_n, split_to_multiple(starts, multiple_of), None, seed=seed)


def rounded_widths(lengths: "ArrayLike", steps: int, tokens: int | None) -> "Integers":
    """Lengths rounded up to one of `steps` widths an octave; none passes `tokens` by rounding.

    Short lengths (under 2 x `steps`) stay as they are.
    """
    import numpy as np

    lengths_n = np.asarray(lengths, dtype=np.int32)
    # length = mantissa x 2**exponent with 0.5 <= mantissa < 1
    _, exponents_n = np.frexp(lengths_n.astype(np.float64))
    step_n = np.maximum(1, (1 << np.maximum(exponents_n - 1, 0)) // steps)
    widths_n: Integers = -(-lengths_n // step_n) * step_n
    if tokens is not None:
        widths_n = np.where(lengths_n <= tokens, np.minimum(widths_n, tokens), widths_n)
    return widths_n


def _cut_by_tokens(ascending_n: "Integers", tokens: int) -> "Integers":
    """Where batches start, and the end: as many rows each as fit `tokens`, one at least."""
    import numpy as np

    starts = [0]
    while starts[-1] < len(ascending_n):
        start = starts[-1]
        most = max(1, tokens // int(ascending_n[start]))
        widths = ascending_n[start : start + most]
        # Rows come in ascending width, so the last one of a batch sets its padded width.
        fit = int(np.count_nonzero(np.arange(1, len(widths) + 1) * widths <= tokens))
        starts.append(start + max(1, fit))
    return np.asarray(starts)


def split_to_multiple(starts: "Integers", multiple_of: int) -> "Integers":
    """`starts` with the batches of most rows halved until their number is a multiple.

    Raises:
        ValueError: there are fewer rows than batches asked for.
    """
    import numpy as np

    target = -(-(len(starts) - 1) // multiple_of) * multiple_of
    if target > starts[-1]:
        raise ValueError(
            f"{starts[-1]} rows cannot fill {target} batches, a multiple of {multiple_of}"
        )
    while len(starts) - 1 < target:
        largest = int(np.argmax(np.diff(starts)))
        middle = (starts[largest] + starts[largest + 1]) // 2
        starts = np.insert(starts, largest + 1, middle)
    return starts


def row_lengths(rows: "datasets.Dataset") -> "Integers":
    """How many tokens each row has, read without making a Python list of any row."""
    import numpy as np
    import pyarrow.compute as pc

    tables = rows.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
    parts = [pc.list_value_length(table["input_ids"]).to_numpy() for table in tables]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def forward_epochs(loader: Any, batches: RowBatches) -> None:
    """Let the epoch reach `batches` inside a data loader that accelerate prepared.

    Of several processes, accelerate wraps the batches twice on resume (SkipBatchSampler of
    BatchSamplerShard), and neither it (1.15) nor the trainer (transformers 5.23, `_run_epoch`)
    looks that deep: a resumed process would go on with the order of epoch 0.
    """
    if loader.batch_sampler is not batches:
        loader.batch_sampler.set_epoch = batches.set_epoch


@dataclass(frozen=True)
class Supervision:
    """What the loss must know of a batch, found on the CPU before its tensors go to a GPU: the
    step then never waits for the GPU to learn a shape.

    Attributes:
        pairs_4N: of every supervised pair its row, its position, the index of that position in
            `positions_K`, and the token to predict; int64.
        positions_K: the positions that predict a supervised token in any row, ascending; int64.
        shared_prefix: how many first tokens the rows share, see `shared_prefix_length`.
    """

    pairs_4N: "Tensor"  # noqa: N815
    positions_K: "Tensor"  # noqa: N815
    shared_prefix: int

    @staticmethod
    def of(ids_BT: "Tensor", labels_BT: "Tensor") -> "Supervision":
        """From a batch's tensors, padded on the right."""
        import torch

        ids_BT, labels_BT = ids_BT.cpu(), labels_BT.cpu()
        rows_N, positions_N = (labels_BT[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        positions_K, kept_N = torch.unique(positions_N, return_inverse=True)
        targets_N = labels_BT[rows_N, positions_N + 1]
        return Supervision(
            torch.stack([rows_N, positions_N, kept_N, targets_N]),
            positions_K,
            shared_prefix_length(ids_BT, labels_BT),
        )

    @property
    def targets_N(self) -> "Tensor":  # noqa: N802
        """The tokens to predict."""
        return self.pairs_4N[3]

    def to(self, *where: Any, **how: Any) -> "Supervision":
        """As `Tensor.to`; accelerate calls it."""
        return replace(
            self,
            pairs_4N=self.pairs_4N.to(*where, **how),
            positions_K=self.positions_K.to(*where, **how),
        )

    def pin_memory(self) -> "Supervision":
        """As `Tensor.pin_memory`; torch's DataLoader calls it."""
        return replace(
            self,
            pairs_4N=self.pairs_4N.pin_memory(),
            positions_K=self.positions_K.pin_memory(),
        )


def shared_prefix_length(ids_BT: "Tensor", labels_BT: "Tensor") -> int:
    """P: how many first tokens all rows share, all of them before the first position whose next
    token is supervised. 0 when sharing does not pay."""
    if ids_BT.shape[0] < 2:
        return 0
    same_T = (ids_BT == ids_BT[:1]).all(dim=0) & (labels_BT == IGNORE_INDEX).all(dim=0)
    differs = (~same_T).nonzero()
    first_difference = int(differs[0]) if len(differs) else ids_BT.shape[1]
    # The last shared token must stay in the suffix: its position may predict a supervised one.
    length = first_difference - 1
    return length if length >= MIN_SHARED_PREFIX_TOKENS else 0


@dataclass(frozen=True)
class PaddedCollator:
    """Rows of `input_ids` and `labels` to right-padded tensors of shape (B, T)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> "dict[str, Any]":
        """`input_ids`, `attention_mask`, `labels` and the `supervision` of one batch.

        Nothing predicts a row's first token, so it has no label.
        """
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        labels_BT = torch.full((len(rows), width), IGNORE_INDEX, dtype=torch.long)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[i, :length] = torch.as_tensor(row["input_ids"])
            labels_BT[i, 1:length] = torch.as_tensor(row["labels"])[1:]
            mask_BT[i, :length] = 1
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "labels": labels_BT,
            "supervision": Supervision.of(ids_BT, labels_BT),
        }
