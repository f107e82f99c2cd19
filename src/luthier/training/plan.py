"""What the trainer needs beyond TRL's own arguments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.training.meter import Counts, Meter

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingPlan:
    """How the rows become batches, a batch a loss, and what is kept of a run.

    `batches` makes the batch sampler of the training rows, `collate` a batch of them with its
    `counts`. `loss`, `validate` and `step_metrics` as in `Objective`.
    `most_tokens`: batches of more padded tokens go through the model in parts. `say_when_shrunk`:
    when memory runs out, batches are split and this is told; None: it is an error.
    `parameter_groups` makes the optimizer's groups, where they are not transformers' own.
    `decay_fraction` is the share of steps in which warmup_stable_decay decays. `is_fork`: the
    learning rate and other settings are those of now, not those of the checkpoint. `shards`: the
    model is split over the processes (FSDP2).
    """

    batches: Callable[[], Any]
    collate: Callable[..., dict[str, Any]]
    loss: "Callable[[nn.Module, dict[str, Any], Counts], Tensor]"
    validate: "Callable[[nn.Module], dict[str, float]]"
    checkpoints: Path
    step_metrics: Callable[[], dict[str, float]] = dict
    parameter_groups: "Callable[[nn.Module], list[dict[str, Any]]] | None" = None
    keep_checkpoints: int = 2
    decay_fraction: float | None = None
    is_fork: bool = False
    meter: Meter = field(default_factory=Meter)
    most_tokens: int | None = None
    say_when_shrunk: Callable[[str], None] | None = None
    shards: bool = False
