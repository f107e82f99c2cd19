"""Several rows in one sequence without padding, and the measures that prove them apart.

R rows of a pack, T tokens in all, N supervised pairs, V tokens of the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.data.tokens import IGNORE_INDEX
from luthier.training.batches import (
    PaddedCollator,
    RowBatches,
    Supervision,
    rounded_widths,
    split_to_multiple,
)
from luthier.training.loss import evaluating, supervised_logits, unwrapped
from luthier.training.packed_attention import (
    PackingWay,
    choose_packing_attention,
    takes_attention_functions,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from luthier.training.batches import Integers

    Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

# Rows are exchangeable within a 64th of an octave of length: packs stay at most 1.6 % emptier.
PACKED_STEPS_PER_OCTAVE = 64


class PackedBatches(RowBatches):
    """Packs of rows, first fit decreasing: at most `tokens` tokens each, no row split.

    Johnson's bound (1973): at most 11/9 of the fewest packs possible, and 6/9 of one. A row longer
    than `tokens` is a pack of its own. `multiple_of` as in LengthSortedBatches.
    """

    def __init__(
        self, lengths: "ArrayLike", *, tokens: int, seed: int, multiple_of: int = 1
    ) -> None:
        """Raises ValueError when there are fewer rows than `multiple_of`."""
        import numpy as np

        widths_n = rounded_widths(lengths, PACKED_STEPS_PER_OCTAVE, tokens)
        packs_n = first_fit_decreasing(widths_n, tokens)
        starts = np.append(0, np.cumsum(np.bincount(packs_n)))
        # packs_n goes by descending width, RowBatches counts in ascending width.
        slots_n = len(packs_n) - 1 - np.argsort(packs_n, kind="stable")
        super().__init__(widths_n, split_to_multiple(starts, multiple_of), slots_n, seed=seed)


def first_fit_decreasing(widths_n: "Integers", tokens: int) -> "Integers":
    """The pack of each row, rows taken by descending width, packs numbered as they open.

    All rows of one width at once: they fill the first pack that has room, then the next.
    """
    import numpy as np

    sizes, counts = np.unique(widths_n, return_counts=True)
    smallest = int(sizes[0])
    room = np.zeros(0, np.int64)
    packs: list[Integers] = []
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        candidates = np.flatnonzero(room >= max(size, smallest))
        ends = np.minimum(np.cumsum(room[candidates] // size), count)
        placed = np.diff(ends, prepend=0)
        room[candidates] -= placed * size
        left = count - int(placed.sum())
        each = max(1, tokens // size)
        opened = np.arange(left) // each + len(room)
        packs += [np.repeat(candidates, placed), opened]
        full = np.bincount(opened - len(room), minlength=-(-left // each))
        room = np.concatenate([room, np.maximum(tokens - full * size, 0)])
    return np.concatenate(packs)


def why_not_packed(model: "nn.Module") -> str | None:
    """Why rows cannot be packed for `model`, in a sentence's words; None when they can.

    It goes by the model's settings and code; `packing_isolation_error` measures.
    """
    plain = unwrapped(model)
    choice = choose_packing_attention(plain.device.type, plain.config)
    if choice.way is None:
        return choice.reason
    if choice.way != "block_mask" and not takes_attention_functions(plain):
        return "the model's code chooses attention itself"
    return None


@dataclass(frozen=True)
class Packing:
    """Where the rows of a pack are, for the model's attention.

    Attributes:
        positions_1T: each token's position in its row.
        starts: where rows start, and the end; int32, (R + 1,).
        lengths: tokens of each row.
    """

    way: PackingWay
    positions_1T: "Tensor"  # noqa: N815
    starts: "Tensor"
    lengths: tuple[int, ...]

    def model_arguments(self) -> dict[str, Any]:
        """What to call the model with, beside `input_ids`; never an attention mask of ones, with
        which transformers takes the pack for one row (FAILURES F17)."""
        arguments: dict[str, Any] = {"position_ids": self.positions_1T}
        if self.way in {"flash_attention", "varlen"}:
            longest = max(self.lengths)
            arguments |= {
                "cu_seq_lens_q": self.starts,
                "cu_seq_lens_k": self.starts,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        if self.way == "row_by_row":
            arguments["packed_lengths"] = self.lengths
        if self.way in {"varlen", "row_by_row"}:
            # transformers takes a mask of four dimensions as it is (5.23, masking_utils.py), so it
            # builds none of T x T. Our functions ignore this one; others would see nothing at all.
            arguments["attention_mask"] = self.starts.new_zeros((1, 1, 1, 1)).bool()
        return arguments

    def to(self, *where: Any, **how: Any) -> "Packing":
        """As `Tensor.to`; accelerate calls it."""
        return replace(
            self,
            positions_1T=self.positions_1T.to(*where, **how),
            starts=self.starts.to(*where, **how),
        )

    def pin_memory(self) -> "Packing":
        """As `Tensor.pin_memory`; torch's DataLoader calls it."""
        return replace(
            self, positions_1T=self.positions_1T.pin_memory(), starts=self.starts.pin_memory()
        )


@dataclass(frozen=True)
class PackedCollator:
    """Rows of `input_ids` and `labels` to one sequence of shape (1, T), attention by `way`."""

    way: PackingWay

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels`, their `supervision`, and the `packing`.

        The first token of a row has no label: the row before would predict it.
        """
        import torch

        lengths = tuple(len(row["input_ids"]) for row in rows)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        ids_1T = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows]).long()[None]
        labels_1T = torch.cat([torch.as_tensor(row["labels"]) for row in rows]).long()[None]
        labels_1T[0, starts[:-1]] = IGNORE_INDEX
        positions_1T = torch.cat([torch.arange(length) for length in lengths])[None]
        return {
            "input_ids": ids_1T,
            "labels": labels_1T,
            "supervision": Supervision.of(ids_1T, labels_1T),
            "packing": Packing(self.way, positions_1T, starts.int(), lengths),
        }


def packing_isolation_error(
    model: "nn.Module", rows: Sequence[dict[str, Any]], collate: "Collate"
) -> float:
    """F17: the largest difference between a row's logits in a pack and alone, at supervised
    positions, relative to the largest logit there; no gradient, no dropout.

    In float32 it is rounding, under 1e-5; other rows in sight make it 0.1 and more. In bfloat16
    rounding alone reaches percents: there `packing_leak` decides.

    Args:
        model: with the attention that training uses.
        rows: those to pack, all into one sequence.
        collate: training's own PackedCollator.
    """
    import torch

    alone = PaddedCollator(0)
    with evaluating(model), torch.no_grad():
        found_NV = _logits(model, collate(rows))
        expected_NV = torch.cat([_logits(model, alone([row])) for row in rows])
    return _relative_difference(found_NV, expected_NV)


def packing_leak(model: "nn.Module", rows: Sequence[dict[str, Any]], collate: "Collate") -> float:
    """F17 in any dtype: by how much a row's logits change, relative to the largest logit, when
    all other tokens of its neighbours in the pack are replaced. Isolated rows: 0.

    Every second row keeps its tokens, then the others do. Arguments as `packing_isolation_error`.
    """
    import torch

    vocabulary = unwrapped(model).config.get_text_config().vocab_size
    leaks = []
    with evaluating(model), torch.no_grad():
        batch = collate(rows)
        row_of_N = torch.bucketize(
            batch["supervision"].pairs_4N[1], batch["packing"].starts[1:].long(), right=True
        )
        original_NV = _logits(model, batch)
        for kept in (0, 1):
            other = [
                row if number % 2 == kept else _replaced(row, vocabulary)
                for number, row in enumerate(rows)
            ]
            own_N = (row_of_N % 2 == kept).to(original_NV.device)
            changed_NV = _logits(model, collate(other))
            leaks.append(_relative_difference(changed_NV[own_N], original_NV[own_N]))
    return max(leaks)


def _replaced(row: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The row with other tokens, supervised at the same positions."""
    return {**row, "input_ids": [(token * 31 + 17) % vocabulary for token in row["input_ids"]]}


def _logits(model: "nn.Module", batch: dict[str, Any]) -> "Tensor":
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items()}
    return supervised_logits(model, inputs, share_prefix=False).float()


def _relative_difference(found_NV: "Tensor", expected_NV: "Tensor") -> float:
    if not found_NV.numel():
        return 0.0
    differences_N = (found_NV - expected_NV).abs().amax(dim=1) / expected_NV.abs().amax(dim=1)
    return float(differences_N.max())
