"""Training jobs that are watched from inside: weights, gradients and rates of every step."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.training import session
from luthier.training.job import Outcome, TrainingJob
from luthier.training.trainer import supervised_trainer_class
from training_cases import run_job

Tensors = dict[str, torch.Tensor]


@dataclass
class Watched:
    """What was seen of a job. Lists have an entry for each optimizer step.

    `start` and `weights` are what is trained, `weights` after the step; `gradients` are as the
    optimizer gets them; `rates` has the learning rates of the parameter groups; `states` the
    optimizer's state by the parameter's name.
    """

    trainer: Any = None
    outcome: Outcome | None = None
    start: Tensors = field(default_factory=dict)
    gradients: list[Tensors] = field(default_factory=list)
    weights: list[Tensors] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The training lines of the log."""
        return [line for line in self.trainer.state.log_history if "loss" in line]

    @property
    def evaluations(self) -> dict[int, float]:
        """Validation loss by step."""
        history = self.trainer.state.log_history
        return {line["step"]: line["eval_loss"] for line in history if "eval_loss" in line}


def trained(model: torch.nn.Module) -> Tensors:
    """A copy of what of a model is trained."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def saved(job: TrainingJob) -> Tensors:
    """The adapter that a job wrote."""
    return load_file(job.outputs / "adapter_model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all tensors are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def watch(
    job: TrainingJob,
    asked_to_stop: Callable[[], bool] = lambda: False,
    at_start: Callable[[Any], None] = lambda _: None,
) -> Watched:
    """Run a job in silence; `at_start` is given the trainer before its first step."""
    seen = Watched()
    with _trainer_passes(lambda trainer: (_record(trainer, seen), at_start(trainer))):
        seen.outcome = run_job(job, asked_to_stop)
    return seen


@contextmanager
def _trainer_passes(look: Callable[[Any], object]) -> Iterator[None]:
    """Within it every trainer is looked at when it starts, and then does what it does."""
    kind = supervised_trainer_class()
    original = kind.train_from

    def train_from(trainer: Any, checkpoint: Path | None) -> None:
        look(trainer)
        original(trainer, checkpoint)

    kind.train_from = train_from
    try:
        yield
    finally:
        kind.train_from = original


def _record(trainer: Any, seen: Watched) -> None:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(
            self, _args: Any, _state: Any, _control: Any, model: Any, **_: Any
        ) -> None:
            seen.gradients.append(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            )
            groups = trainer.optimizer.param_groups
            seen.rates.append([group["lr"] for group in groups])

        def on_optimizer_step(
            self, _args: Any, _state: Any, _control: Any, model: Any, **_: Any
        ) -> None:
            seen.weights.append(trained(model))
            state = trainer.optimizer.state
            seen.states = {n: dict(state[p]) for n, p in model.named_parameters() if p in state}

    seen.trainer, seen.start = trainer, trained(trainer.model)
    trainer.add_callback(Recorder())


@pytest.fixture(scope="module", autouse=True)
def light_sessions(tiny_base: Path) -> Iterator[None]:
    """Sessions cost what they train: one tokenizer for all, and no search of all of torch for
    garbage whenever a training ends."""
    load = session.load_tokenizer
    tokenizers = {tiny_base: load(tiny_base)}
    session.load_tokenizer = lambda folder: tokenizers.get(folder) or load(folder)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    session.load_tokenizer = load
