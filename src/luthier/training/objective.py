"""What a training run learns from: rows, batches of them, and a batch's share of the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError
from luthier.gates import Gate
from luthier.training.batches import LengthSortedBatches, RowBatches
from luthier.training.callbacks import loss_is_real
from luthier.training.meter import Counts
from luthier.training.packing import PackedBatches
from luthier.training.performance import Decisions
from luthier.training.rows import TrainingRows
from luthier.training.section import TrainingSection

if TYPE_CHECKING:
    from torch import Tensor, nn

Rows = Sequence[dict[str, Any]]
Log = list[dict[str, Any]]


def _no_gates(_log: Log, _kept_step: int | None) -> list[Gate]:
    return []


@dataclass(frozen=True)
class Objective:
    """Of supervised training (`supervised.py`) or of preference optimisation (`preference.py`).

    `loss` is a batch's share of the loss of an optimizer step, whose batches hold the `Counts`
    that it gets. `validate` measures the model on the held-out rows: `eval_loss`, and more by
    other names that begin with `eval_`. `step_metrics` are what a step's log line gets beside its
    loss. `is_real`: whether a logged loss can be one. `gates` were measured before training,
    `closing_gates` are of the training log.
    """

    rows: TrainingRows
    batches: Callable[[], RowBatches]
    collate: Callable[[Rows], dict[str, Any]]
    count: Callable[[Rows], Counts]
    loss: "Callable[[nn.Module, dict[str, Any], Counts], Tensor]"
    validate: "Callable[[nn.Module], dict[str, float]]"
    step_metrics: Callable[[], dict[str, float]] = dict
    is_real: Callable[[float], bool] = loss_is_real
    gates: Sequence[Gate] = ()
    closing_gates: Callable[[Log, int | None], list[Gate]] = _no_gates
    facts: Mapping[str, Any] = field(default_factory=dict)


def row_batches(
    section: TrainingSection, decisions: Decisions, rows: TrainingRows, seed: int
) -> RowBatches:
    """The batches that the section asks for, so many that every optimizer step is full.

    Raises:
        DataError: there are too few rows.
    """
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
        name = section.stage_name
        raise DataError(
            f"{error}. Lower {name}.gradient_accumulation_steps or {name}.processes, or add rows."
        ) from error
