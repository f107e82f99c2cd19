"""What happens between the steps of a training run: progress, stopping on request, bad losses."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.progress import Task
    from luthier.store.artifact import Workspace


def loss_is_real(loss: float) -> bool:
    """Whether a logged loss can be one: finite, and not the zero of a batch without labels."""
    return math.isfinite(loss) and loss != 0.0


def stage_callback(workspace: "Workspace", task: "Task") -> Any:
    """A TrainerCallback that advances `task`, stops at a step's end when asked to or when the loss
    is NaN, infinite or 0, and has a checkpoint written before it stops on request."""
    from transformers import TrainerCallback

    class StageCallback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            task.resize(state.max_steps, done=state.global_step)

        def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> Any:
            if workspace.stop.requested:
                control.should_save = True
                control.should_training_stop = True
            return control

        def on_log(self, _args: Any, _state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
            if "loss" in logs:
                task.advance(1, loss=float(logs["loss"]), lr=float(logs["learning_rate"]))
                if not loss_is_real(float(logs["loss"])):
                    control.should_training_stop = True
            return control

    return StageCallback()
