"""Supervised fine-tuning as an objective: rows padded or packed, the loss on supervised tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.tokens import IGNORE_INDEX
from luthier.training.batches import PaddedCollator
from luthier.training.learning import PROBED_PACK_ROWS, packing_gate
from luthier.training.loss import Head, mean_loss, summed_loss, supports_head_on_pairs
from luthier.training.meter import Counts
from luthier.training.objective import Objective, Rows, row_batches
from luthier.training.packed_attention import choose_packing_attention, use_packing_attention
from luthier.training.packing import PackedCollator
from luthier.training.performance import Decisions
from luthier.training.processes import mean_over_processes
from luthier.training.rows import TrainingRows
from luthier.training.sft_section import SFTSection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from luthier.gates import Gate


def supervised_objective(
    section: SFTSection,
    decisions: Decisions,
    rows: TrainingRows,
    model: "PreTrainedModel",
    seed: int,
    pad_token_id: int,
) -> Objective:
    """As the section and the decisions say; for packing, the model's attention is set."""
    head = choose_head(decisions, model)

    def loss(model: "nn.Module", inputs: dict[str, Any], step: Counts) -> "Tensor":
        summed = summed_loss(
            model,
            inputs,
            share_prefix=decisions.share_prefix.on,
            head=head,
            label_smoothing=section.label_smoothing,
        )
        return summed / step.supervised_tokens

    def validate(model: "nn.Module") -> dict[str, float]:
        assert rows.validation is not None
        return {"eval_loss": mean_over_processes(mean_loss, model, rows.validation)}

    collate: Callable[[Rows], dict[str, Any]] = PaddedCollator(pad_token_id)
    gates: list[Gate] = []
    if decisions.packing.on:
        dtype = str(model.dtype).removeprefix("torch.")
        way = choose_packing_attention(model.device.type, model.config, dtype=dtype).way
        assert way is not None, "the decision looked"
        use_packing_attention(model, way)
        collate = PackedCollator(way)
        first = rows.train.select(range(min(PROBED_PACK_ROWS, len(rows.train))))
        gates = [packing_gate(model, list(first), collate)]
    return Objective(
        rows=rows,
        batches=lambda: row_batches(section, decisions, rows, seed),
        collate=collate,
        count=count_rows,
        loss=loss,
        validate=validate,
        gates=gates,
    )


def choose_head(decisions: Decisions, model: "nn.Module") -> Head:
    """Where the head runs, by the decisions and what the model allows."""
    if not decisions.supervised_head.on:
        return "all"
    return "pairs" if supports_head_on_pairs(model) else "positions"


def count_rows(rows: Sequence[dict[str, Any]]) -> Counts:
    """Of rows with labels."""
    return Counts(
        real_tokens=sum(len(row["input_ids"]) for row in rows),
        # The first token of a row is never predicted.
        supervised_tokens=sum(
            label != IGNORE_INDEX for row in rows for label in row["labels"][1:]
        ),
    )
