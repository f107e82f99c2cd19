"""How a job's rows become batches, and a batch a loss: padded or packed, by the decisions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError
from luthier.training.batches import LengthSortedBatches, PaddedCollator, RowBatches
from luthier.training.loss import Head, mean_loss, summed_loss, supports_head_on_pairs
from luthier.training.packed_attention import choose_packing_attention, use_packing_attention
from luthier.training.packing import PackedBatches, PackedCollator
from luthier.training.performance import Decisions
from luthier.training.processes import mean_over_processes
from luthier.training.rows import TrainingRows
from luthier.training.section import SFTSection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batching:
    """Batches of row numbers, rows to tensors, tensors to the summed loss."""

    batches: Callable[[], RowBatches]
    collate: Callable[..., dict[str, Any]]
    loss: "Callable[[nn.Module, dict[str, Any]], Tensor]"
    validation_loss: "Callable[[nn.Module], float]"
    is_packed: bool


def make_batching(
    section: SFTSection,
    decisions: Decisions,
    rows: TrainingRows,
    model: "PreTrainedModel",
    seed: int,
    pad_token_id: int,
) -> Batching:
    """As the section and the decisions say; for packing, the model's attention is set."""
    head: Head = "all"
    if decisions.supervised_head.on:
        head = "pairs" if supports_head_on_pairs(model) else "positions"

    def loss(model: "nn.Module", inputs: dict[str, Any]) -> "Tensor":
        return summed_loss(
            model,
            inputs,
            share_prefix=decisions.share_prefix.on,
            head=head,
            label_smoothing=section.label_smoothing,
        )

    def validation_loss(model: "nn.Module") -> float:
        assert rows.validation is not None
        return mean_over_processes(mean_loss, model, rows.validation)

    collate: Callable[..., dict[str, Any]] = PaddedCollator(pad_token_id)
    if decisions.packing.on:
        dtype = str(model.dtype).removeprefix("torch.")
        way = choose_packing_attention(model.device.type, model.config, dtype=dtype).way
        assert way is not None, "the decision looked"
        use_packing_attention(model, way)
        collate = PackedCollator(way)
    return Batching(
        lambda: _batches(section, decisions, rows, seed),
        collate,
        loss,
        validation_loss,
        decisions.packing.on,
    )


def _batches(
    section: SFTSection, decisions: Decisions, rows: TrainingRows, seed: int
) -> RowBatches:
    # Every optimizer step of every process is full.
    multiple_of = section.processes * section.gradient_accumulation_steps
    try:
        if decisions.packing.on:
            assert section.batch_tokens is not None, "the section sees to it"
            return PackedBatches(
                rows.lengths, tokens=section.batch_tokens, seed=seed, multiple_of=multiple_of
            )
        return LengthSortedBatches(
            rows.lengths,
            rows=section.per_device_batch_size,
            tokens=section.batch_tokens,
            seed=seed,
            multiple_of=multiple_of,
            by_length=decisions.length_sorted.on,
        )
    except ValueError as error:
        raise DataError(
            f"{error}. Lower sft.gradient_accumulation_steps or sft.processes, or add rows."
        ) from error
