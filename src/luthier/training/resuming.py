"""Sealed checkpoints and going on from them, as methods of the trainer.

Sources of what they replace: trl 1.16 `trainer/sft_trainer.py`, transformers 5.23 `trainer.py`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import StoreError
from luthier.models.lora import keep_trainable_float32
from luthier.training.checkpoints import checkpoint_damage, checkpoint_folder, seal_checkpoint
from luthier.training.plan import TrainingPlan

if TYPE_CHECKING:
    from trl import SFTTrainer as _Trainer
else:  # trl is imported when the class is made
    _Trainer = object

STATE_NAME = "trainer_state.json"
_NOT_KEPT = "training_args.bin"  # a pickle that nobody reads


class Resuming(_Trainer):  # type: ignore[misc]
    """Methods of a TRL trainer that writes sealed checkpoints and begins from one."""

    _plan: TrainingPlan

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._save(output_dir, state_dict)
            return
        # PEFT would write a model card into every checkpoint, which takes as long as the weights.
        self.model.create_or_update_model_card = lambda _: None
        # transformers leaves PEFT to choose, which stores whole embeddings beside their adapter.
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from trl import SFTTrainer

        # Past TRL's own method, which writes a model card into every checkpoint.
        super(SFTTrainer, self)._save_checkpoint(model, trial)
        # Every rank wrote the states of its random numbers.
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return
        step = self.state.global_step
        unsealed = Path(self.args.output_dir) / f"checkpoint-{step}"
        (unsealed / _NOT_KEPT).unlink(missing_ok=True)
        seal_checkpoint(
            unsealed,
            self._plan.checkpoints,
            step,
            keep=self._plan.keep_checkpoints,
            best_step=self.state.best_global_step,
        )

    def _load_callback_state(self) -> None:
        """Give every callback, as it is, the state that the checkpoint has for it.

        A fork begins anew with what is best and when to stop: the parent's best weights are
        not there, and its reason to stop was the reason to fork it.
        """
        from transformers.trainer_callback import ExportableState

        if self._plan.is_fork:
            self.state.best_metric = None
            self.state.best_global_step = None
            self.state.best_model_checkpoint = None
            return
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if kept is not None and isinstance(callback, ExportableState):
                for name, value in kept["attributes"].items():
                    setattr(callback, name, value)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if not self._plan.is_fork or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        asked = [_without_parameters(group) for group in self.optimizer.param_groups]
        rates = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler.base_lrs = rates
        step = self.lr_scheduler.last_epoch
        for group, settings, rate, share in zip(
            self.optimizer.param_groups,
            asked,
            rates,
            self.lr_scheduler.lr_lambdas,
            strict=True,
        ):
            group |= settings | {"initial_lr": rate, "lr": rate * share(step)}

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end from a sealed checkpoint, or from the start.

        A checkpoint at the end is only loaded: transformers would train one more step.
        """
        import torch
        from transformers import TrainerState

        if self.args.process_index > 0:
            # transformers gives all ranks one seed, and so the same dropout.
            torch.manual_seed(self.args.seed + self.args.process_index)
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / STATE_NAME))
        stopped = stop_reason(checkpoint) is not None
        if not self._plan.is_fork and (stopped or state.global_step >= state.max_steps):
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
            self._load_callback_state()
            return
        self.train(resume_from_checkpoint=str(checkpoint))

    def load_best(self) -> int:
        """Put the weights of the lowest validation loss back; the step that they are from.

        Raises:
            StoreError: their checkpoint is damaged.
        """
        best = self.state.best_global_step
        if best and best != self.state.global_step:
            sealed = checkpoint_folder(self._plan.checkpoints, best)
            damage = checkpoint_damage(sealed)
            if damage is not None:
                raise StoreError(
                    f"{sealed} has the best weights, and is damaged: {damage}. The same "
                    "command goes back to a checkpoint before it."
                )
            self._load_from_checkpoint(str(sealed))
            keep_trainable_float32(self.model)
        return int(best or self.state.global_step)


def stop_reason(checkpoint: Path) -> str | None:
    """Why training ended early at a checkpoint; None when it did not."""
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    kept = state["stateful_callbacks"].get("StageCallback", {"attributes": {}})
    reason: str | None = kept["attributes"].get("stop_reason")
    return reason


def best_step(checkpoint: Path) -> int | None:
    """The step with the lowest validation loss up to a checkpoint; None before the first one."""
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    step: int | None = state["best_global_step"]
    return step


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
