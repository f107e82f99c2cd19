"""An optimizer step: batches, loss, optimizer, schedule, evaluation, as methods of the trainer.

Sources of what they replace: trl 1.16 `trainer/sft_trainer.py`, transformers 5.23 `trainer.py`.
"""

import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError
from luthier.training.batches import forward_epochs
from luthier.training.meter import Counts
from luthier.training.plan import TrainingPlan
from luthier.training.processes import sums
from luthier.training.shrinking import ShrinkingStep

if TYPE_CHECKING:
    from torch import nn

if TYPE_CHECKING:
    from trl import SFTTrainer as _Trainer
else:  # trl is imported when the class is made
    _Trainer = object


_NOT_TENSORS = ("rows", "counts")


class Stepping(_Trainer):  # type: ignore[misc]
    """Methods of a TRL trainer whose loss runs the head on supervised positions only."""

    _plan: TrainingPlan
    _step: Counts
    shrinking: ShrinkingStep | None
    optimizer: Any
    control: Any

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Forward and backward of one batch; in parts when it is large, or memory ran out."""
        plan, step = self._plan, super().training_step
        if plan.say_when_shrunk is None and plan.most_tokens is None:
            return step(model, inputs, num_items_in_batch)
        if self.shrinking is None:
            self.shrinking = ShrinkingStep(model.zero_grad, plan.say_when_shrunk, plan.most_tokens)
        whole = inputs["rows"].rows

        def run(rows: Any) -> Any:
            batch = inputs if rows is whole else self.data_collator(rows)
            return step(model, batch, num_items_in_batch)

        return self.shrinking(whole, run, ends_step=self.accelerator.sync_gradients)

    def get_train_dataloader(self) -> Any:
        """Batches by the plan, dealt to the processes."""
        from torch.utils.data import DataLoader

        batches = self._plan.batches()
        loader = self.accelerator.prepare(
            DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)
        )
        forward_epochs(loader, batches)
        return loader

    def create_optimizer(self, model: Any = None) -> Any:
        """The plan's groups of parameters under the config's optimizer."""
        groups = self._plan.parameter_groups
        if groups is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = kind(groups(model or self.model), **options)
        if options.get("optim_bits") == 8:
            _keep_embeddings_32_bit(self.model)
        return self.optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """transformers' choice, without pages where there is no GPU."""
        from trl import SFTTrainer

        kind, options = SFTTrainer.get_optimizer_cls_and_kwargs(args, model)
        if args.use_cpu and options.get("is_paged"):
            # Pages go between a GPU and the machine: without a GPU bitsandbytes 0.50 has none
            # either, and warns. The arithmetic is the same.
            options["is_paged"] = False
        return kind, options

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule, refused when its warm-up never ends.

        Raises:
            ConfigError: the warm-up takes all steps.
        """
        warmup = self.args.get_warmup_steps(num_training_steps)
        if warmup >= num_training_steps and self.args.lr_scheduler_type != "constant":
            raise ConfigError(
                f"The warm-up takes {warmup} of {num_training_steps} steps, so the learning "
                "rate would never be reached. Set a lower warmup_steps or warmup_fraction (0: "
                "none), or train for more steps."
            )
        if self._plan.decay_fraction is not None:
            steps = math.ceil(self._plan.decay_fraction * num_training_steps)
            self.args.lr_scheduler_kwargs["num_decay_steps"] = min(
                steps, num_training_steps - warmup
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:  # noqa: ARG002
        """Supervised tokens of the optimizer step. What its batches hold was counted by the
        collator on the CPU; it is summed over all processes and kept for the loss."""
        import torch

        batches = [astuple(batch["counts"]) for batch in batch_samples]
        self._step = Counts(*sums(*map(sum, zip(*batches, strict=True))))
        self._plan.meter.count(self._step)
        return torch.tensor(self._step.supervised_tokens)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """A batch's share of the loss of the whole optimizer step."""
        assert not return_outputs, "nobody asks for logits"
        tensors = {name: value for name, value in inputs.items() if name not in _NOT_TENSORS}
        loss = self._plan.loss(model, tensors, self._step)
        # DDP averages gradients over the processes; this is a share of their sum.
        return loss * self.accelerator.num_processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """What the plan measures on the validation rows, over all at once."""
        self.model.eval()
        metrics = self._plan.validate(self.model)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self._plan.meter.restart()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates and memory to the lines of a step."""
        from trl import SFTTrainer

        if "loss" in logs:
            logs |= self._plan.meter.read() | self._plan.step_metrics()
        super(SFTTrainer, self).log(logs, start_time)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        # What is the best so far must outlive the checkpoints after it.
        self.control.should_save = self.control.should_save or is_best
        return is_best


def _keep_embeddings_32_bit(model: "nn.Module") -> None:
    """Trained embeddings keep 32-bit states under an 8-bit optimizer, as transformers 5.23
    `Trainer.create_optimizer` has it: their gradients differ too much from row to row."""
    from bitsandbytes.optim import GlobalOptimManager
    from torch import nn

    manager = GlobalOptimManager.get_instance()
    # It outlives a training, and tells the parameters of the next by their place (bitsandbytes
    # 0.50, optim/optimizer.py `get_config`).
    manager.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            manager.register_module_override(module, "weight", {"optim_bits": 32})
