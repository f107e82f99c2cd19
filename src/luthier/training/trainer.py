"""TRL's SFTTrainer on our tokenised rows: our loss, our batches, our sealed checkpoints.

torch, transformers and trl are imported when the class is first needed, so it is made by a
function.
"""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.models.libraries import quiet_libraries
from luthier.models.lora import keep_trainable_float32
from luthier.training.batches import LengthSortedBatches, PaddedCollator
from luthier.training.checkpoints import seal_checkpoint
from luthier.training.loss import summed_loss

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainingPlan:
    """What the trainer needs beyond TRL's own arguments."""

    rows_per_batch: int | None
    tokens_per_batch: int | None
    seed: int
    share_prefix: bool
    checkpoints: Path


@cache
def supervised_trainer_class() -> Any:
    """The trainer class. Sources of what it replaces: trl 1.16 `trainer/sft_trainer.py`,
    transformers 5.23 `trainer.py`."""
    quiet_libraries()
    from torch.utils.data import DataLoader
    from trl import SFTTrainer

    class SupervisedTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer whose loss runs the head on supervised positions only."""

        def __init__(self, *, plan: TrainingPlan, **options: Any) -> None:
            self._plan = plan
            super().__init__(**options)
            # TRL casts QLoRA adapters to bfloat16, where small updates round away (FAILURES F14).
            keep_trainable_float32(self.model)

        def get_train_dataloader(self) -> Any:
            batches = LengthSortedBatches(
                [len(ids) for ids in self.train_dataset["input_ids"]],
                rows=self._plan.rows_per_batch,
                tokens=self._plan.tokens_per_batch,
                seed=self._plan.seed,
            )
            return self.accelerator.prepare(
                DataLoader(
                    self.train_dataset,
                    batch_sampler=batches,
                    collate_fn=self.data_collator,
                )
            )

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """Mean loss per supervised token of the whole optimizer step."""
            assert not return_outputs, "nobody asks for logits"
            loss = summed_loss(model, inputs, share_prefix=self._plan.share_prefix)
            if num_items_in_batch is None:
                num_items_in_batch = (inputs["labels"] != -100).sum()
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
            return loss

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            # Past TRL's own method, which writes a model card into every checkpoint.
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            step = self.state.global_step
            unsealed = Path(self.args.output_dir) / f"checkpoint-{step}"
            seal_checkpoint(unsealed, self._plan.checkpoints, step, keep=KEPT_CHECKPOINTS)

    return SupervisedTrainer


def make_trainer(
    *,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "tuple[datasets.Dataset, datasets.Dataset | None]",
    plan: TrainingPlan,
    arguments: dict[str, Any],
    callbacks: list[Any],
) -> Any:
    """A trainer for `model`, which carries its adapter, on (train, validation) rows of `input_ids`
    and `labels`. `arguments` go to SFTConfig."""
    quiet_libraries()
    from transformers import PrinterCallback
    from trl import SFTConfig

    unsealed = plan.checkpoints / "unsealed"
    shutil.rmtree(unsealed, ignore_errors=True)
    assert tokenizer.pad_token_id is not None
    trainer = supervised_trainer_class()(
        plan=plan,
        model=model,
        args=SFTConfig(
            output_dir=str(unsealed),
            seed=plan.seed,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            remove_unused_columns=False,
            logging_steps=1,
            logging_first_step=True,
            # A NaN must be seen, not replaced by an average (FAILURES F16).
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to=[],
            save_strategy="steps",
            bf16=False,
            fp16=False,
            **arguments,
        ),
        data_collator=PaddedCollator(tokenizer.pad_token_id),
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    # It prints every log to standard output, which is the caller's for results.
    trainer.remove_callback(PrinterCallback)
    return trainer
