"""TRL's SFTTrainer on our tokenised rows: our loss, our batches, our sealed checkpoints."""

import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier.models.libraries import quick_imports, quiet_libraries
from luthier.training.plan import TrainingPlan
from luthier.training.resuming import Resuming
from luthier.training.sharded_trainer import sharded_trainer_class
from luthier.training.stepping import Stepping

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def supervised_trainer_class() -> Any:
    """The trainer class; torch, transformers and trl are imported when it is first needed."""
    with quick_imports():
        quiet_libraries()
        from trl import SFTTrainer

    class SupervisedTrainer(Stepping, Resuming, SFTTrainer):  # type: ignore[misc]
        """SFTTrainer with our steps and our checkpoints."""

        def __init__(self, *, plan: TrainingPlan, **options: Any) -> None:
            self._plan = plan
            self.shrinking = None
            trained = [
                (one, one.data) for one in options["model"].parameters() if one.requires_grad
            ]
            super().__init__(**options)
            # TRL casts QLoRA adapters to bfloat16, where small updates round away (FAILURES F14):
            # back to what they were, for those of `start_from` would stay rounded.
            for parameter, values in trained:
                if parameter.dtype != values.dtype:
                    parameter.data = values.to(parameter.device)

    return SupervisedTrainer


def make_trainer(
    *,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "datasets.Dataset",
    plan: TrainingPlan,
    arguments: dict[str, Any],
    callbacks: list[Any],
) -> Any:
    """A trainer for `model`, which carries its adapter, on rows of `input_ids` and `labels`.

    `arguments` go to SFTConfig.
    """
    quiet_libraries()
    from transformers import PrinterCallback
    from trl import SFTConfig

    unsealed = plan.checkpoints / "unsealed"
    shutil.rmtree(unsealed, ignore_errors=True)
    assert tokenizer.pad_token_id is not None
    kind = sharded_trainer_class() if plan.shards else supervised_trainer_class()
    trainer = kind(
        plan=plan,
        model=model,
        args=SFTConfig(
            output_dir=str(unsealed),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            remove_unused_columns=False,
            logging_steps=1,
            logging_first_step=True,
            # A NaN must be seen, not replaced by an average (FAILURES F16).
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            save_strategy="steps",
            # Evaluations are asked for by the callback.
            eval_strategy="no",
            restore_callback_states_from_checkpoint=True,
            bf16=False,
            fp16=False,
            # All that is trained takes part in every step; no language model's buffers change.
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            **arguments,
        ),
        data_collator=plan.collate,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    # It prints every log to standard output, which is the caller's for results.
    trainer.remove_callback(PrinterCallback)
    # Checkpoints are for going on with this training, and the base has the tokenizer.
    trainer.processing_class = None
    return trainer
