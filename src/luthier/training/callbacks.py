"""What happens between the steps of a training run: progress, evaluations, stops, bad losses."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier.watching import UNWATCHED, Watch

if TYPE_CHECKING:
    from luthier.progress import Task
    from luthier.training.section import EarlyStoppingSection


ASKED_TO_STOP = "asked to stop"
ENDED = "ended by its watcher"
# Not kept with a checkpoint: what goes on from it was not asked to end.
PASSING_REASONS = (ASKED_TO_STOP, ENDED)


def loss_is_real(loss: float) -> bool:
    """Whether a logged loss can be one: finite, and not the zero of a batch without labels."""
    return math.isfinite(loss) and loss != 0.0


@dataclass(frozen=True)
class Schedule:
    """When a run evaluates and when it ends early. Without `evaluate_every_steps` and
    `evaluate_every_fraction`: at the end of each epoch. The last step evaluates in any case."""

    has_validation: bool = False
    evaluate_every_steps: int | None = None
    evaluate_every_fraction: float | None = None
    early_stopping: "EarlyStoppingSection | None" = None

    def evaluates(self, step: int, steps_per_epoch: int, last: int) -> bool:
        """Whether the validation loss is due after this optimizer step."""
        if not self.has_validation:
            return False
        if self.evaluate_every_fraction is not None:
            return step in _shares(self.evaluate_every_fraction, last)
        every = self.evaluate_every_steps or steps_per_epoch
        return step % every == 0 or step == last

    def progress(self, step: int, last: int) -> float:
        """The share of the steps that an evaluation after this one stands for."""
        if self.evaluate_every_fraction is not None:
            return _shares(self.evaluate_every_fraction, last)[step]
        return step / last


@cache
def _shares(every: float, last: int) -> dict[int, float]:
    """Steps that evaluate, with the share of the `last` step that each stands for."""
    shares = [number * every for number in range(1, int(1 / every) + 1)]
    return {max(1, round(share * last)): round(share, 6) for share in shares} | {last: 1.0}


class StageEvents:
    """What the stage does at each event of transformers' trainer."""

    def __init__(
        self,
        asked_to_stop: Callable[[], bool],
        task: "Task",
        schedule: Schedule,
        is_real: Callable[[float], bool],
        watch: Watch,
    ) -> None:
        self._asked_to_stop, self._task, self._schedule = asked_to_stop, task, schedule
        self._is_real, self._watch = is_real, watch
        self.stop_reason: str | None = None
        self.lowest_loss: float | None = None
        self.without_improvement = 0
        self._shown = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = self.stop_reason if self.stop_reason not in PASSING_REASONS else None
        attributes = {
            "stop_reason": kept,
            "lowest_loss": self.lowest_loss,
            "without_improvement": self.without_improvement,
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The bar gets its length."""
        self._task.resize(state.max_steps, done=state.global_step)
        self._shown = state.global_step

    def on_step_end(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> Any:
        """Ask for what is due after this step."""
        step = state.global_step
        per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        control.should_evaluate = self._schedule.evaluates(step, per_epoch, state.max_steps)
        if self._asked_to_stop():
            self.stop_reason = ASKED_TO_STOP
        elif self._watch.wants_end:
            self.stop_reason = ENDED
        else:
            return control
        control.should_save = control.should_training_stop = True
        return control

    def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
        """Show the step; stop at a loss that is not real."""
        if "loss" not in logs:
            return control
        loss, rate = float(logs["loss"]), float(logs["learning_rate"])
        self._task.advance(state.global_step - self._shown, loss=loss, lr=rate)
        self._shown = state.global_step
        if not self._is_real(loss):
            self.stop_reason = "loss is not real"
            control.should_training_stop = True
        return control

    def on_evaluate(
        self, _args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> Any:
        """Tell who watches; count evaluations without improvement."""
        step = state.global_step
        if step == 0:
            return control
        loss = float(metrics["eval_loss"])
        self._watch.validated(self._schedule.progress(step, state.max_steps), loss)
        if self._stops_early(loss):
            self.stop_reason = "early stopping"
        elif self._watch.wants_end and self.stop_reason is None:
            self.stop_reason = ENDED
        else:
            return control
        control.should_save = control.should_training_stop = True
        return control

    def _stops_early(self, loss: float) -> bool:
        stopping = self._schedule.early_stopping
        if stopping is None:
            return False
        lowest = math.inf if self.lowest_loss is None else self.lowest_loss
        if loss < lowest - stopping.min_improvement:  # never of a NaN
            self.lowest_loss, self.without_improvement = loss, 0
        else:
            self.without_improvement += 1
        return self.without_improvement >= stopping.patience


def stage_callback(
    asked_to_stop: Callable[[], bool],
    task: "Task",
    schedule: Schedule = Schedule(),
    is_real: Callable[[float], bool] = loss_is_real,
    watch: Watch = UNWATCHED,
) -> Any:
    """A TrainerCallback that asks for evaluations, ends training at a step's end, and says why.

    Stop reasons: `asked to stop` and `ended by its watcher` (with a checkpoint), `loss is not
    real` (by `is_real`) and `early stopping`. Its state is part of every checkpoint (FAILURES
    F22). Evaluations are asked for at a step's end and not, as transformers does, at the end of
    the epoch: there a checkpoint of the same step would be older than the evaluation, which a run
    that resumes would never make.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class StageCallback(StageEvents, TrainerCallback, ExportableState):  # type: ignore[misc]
        pass

    return StageCallback(asked_to_stop, task, schedule, is_real, watch)
