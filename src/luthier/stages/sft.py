"""Stage `sft`: supervised fine-tuning of a LoRA or QLoRA adapter on the prepared rows."""

import json
import resource
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.data.dataset import load_split, split_files
from luthier.gates import Gate, check
from luthier.models.loading import DType, Quantization, load_model, load_tokenizer, pick_device
from luthier.models.lora import (
    LoraSection,
    attach,
    moved_share,
    output_matrices,
    save_adapter,
    trainable_dtypes,
)
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically
from luthier.training.callbacks import loss_is_real, stage_callback
from luthier.training.checkpoints import checkpoint_step, newest_intact
from luthier.training.loss import supports_shared_prefix
from luthier.training.trainer import TrainingPlan, make_trainer

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel

LOG_NAME = "training_log.jsonl"
MIN_MOVED_SHARE = 0.9


class SFTSection(Section):
    """Supervised fine-tuning."""

    method: Literal["lora", "qlora"] = Field(
        "lora", description="qlora keeps the base in 4-bit NF4 with double quantisation"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter's shape")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="numerics of the frozen base; auto: bfloat16 on CUDA, float32 on a CPU"
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="peak learning rate of AdamW")
    epochs: int = Field(1, ge=1, description="passes over the training rows")
    batch_tokens: int | None = Field(
        None, ge=16, description="padded tokens of a batch; the other way to say its size"
    )
    per_device_batch_size: int | None = Field(None, ge=1, description="rows of a batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches of an optimizer step")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="learning rate after the warm-up"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of steps to warm up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    share_prefix: bool = Field(
        True, description="compute tokens that all rows of a batch begin with once; exact"
    )
    checkpoint_every_steps: int = Field(
        20, ge=1, json_schema_extra=result_free, description="steps between checkpoints"
    )

    @model_validator(mode="after")
    def _one_batch_size(self) -> "SFTSection":
        if (self.batch_tokens is None) == (self.per_device_batch_size is None):
            raise ValueError("give either batch_tokens or per_device_batch_size")
        return self


def run(section: SFTSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Train, or go on training, and write the adapter."""
    rows = _rows(inputs)
    dtype = _dtype(section)
    quantization: Quantization | None = "nf4" if section.method == "qlora" else None
    model = _adapted_model(section, inputs, dtype, quantization)
    before = output_matrices(model)
    started = time.monotonic()
    trainer, resumed_at = _train(section, inputs, workspace, model, rows)
    seconds = time.monotonic() - started
    workspace.raise_if_stopped()

    log = _clean_log(trainer.state.log_history)
    write_atomically(workspace.path / LOG_NAME, "".join(json.dumps(line) + "\n" for line in log))
    save_adapter(model, workspace.path, str(inputs["base"].manifest.facts["source"]["name"]))
    losses = [line["loss"] for line in log if "loss" in line]
    evaluations = [line["eval_loss"] for line in log if "eval_loss" in line]
    tokens = sum(map(len, rows[0]["input_ids"])) * section.epochs
    done_here = 1 - resumed_at / trainer.state.global_step
    return StageResult(
        metrics={
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "validation_loss": evaluations[-1] if evaluations else None,
        },
        gates=_gates(model, before, losses),
        facts={
            "training": {
                "method": section.method,
                "dtype": dtype,
                "quantization": quantization,
                "device": pick_device(),
                "steps": trainer.state.global_step,
                "stop_reason": "epochs done" if loss_is_real(losses[-1]) else "loss is not real",
                "train_rows": len(rows[0]),
                "trained_tokens": tokens,
                "supervised_tokens": _supervised(rows[0]) * section.epochs,
                "trainable_dtypes": trainable_dtypes(model),
                "peak_memory_bytes": _peak_memory_bytes(),
                "tokens_per_second": tokens * done_here / seconds,
            }
        },
        timings_seconds={"train": seconds},
    )


def _rows(inputs: StageInputs) -> "tuple[datasets.Dataset, datasets.Dataset | None]":
    """Training rows and validation rows, token columns only."""
    folder = inputs["dataset"].path
    columns = ["input_ids", "labels"]
    train = load_split(folder, "train", columns)
    if not split_files(folder, "validation"):
        return train, None
    return train, load_split(folder, "validation", columns)


def _dtype(section: SFTSection) -> DType:
    if section.dtype != "auto":
        return section.dtype
    return "bfloat16" if pick_device() == "cuda" else "float32"


def _adapted_model(
    section: SFTSection, inputs: StageInputs, dtype: DType, quantization: Quantization | None
) -> "PreTrainedModel":
    model = load_model(inputs["base"].path, dtype=dtype, quantization=quantization)
    if quantization is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=section.gradient_checkpointing
        )
    return attach(model, section.lora, inputs.seed)


def _train(
    section: SFTSection,
    inputs: StageInputs,
    workspace: Workspace,
    model: "PreTrainedModel",
    rows: "tuple[datasets.Dataset, datasets.Dataset | None]",
) -> tuple[Any, int]:
    """Train to the end, or to a requested stop; gives the trainer and the step resumed from."""
    checkpoints = workspace.scratch / "checkpoints"
    plan = TrainingPlan(
        rows_per_batch=section.per_device_batch_size,
        tokens_per_batch=section.batch_tokens,
        seed=inputs.seed,
        share_prefix=_shares_prefix(section, model),
        checkpoints=checkpoints,
    )
    resume_from = newest_intact(checkpoints, workspace.reporter.say)
    with workspace.reporter.task("training", 0, "steps") as task:
        trainer = make_trainer(
            model=model,
            tokenizer=load_tokenizer(inputs["base"].path),
            rows=rows,
            plan=plan,
            arguments=_arguments(section, has_validation=rows[1] is not None),
            callbacks=[stage_callback(workspace, task)],
        )
        if resume_from is not None:
            workspace.reporter.say(f"  resuming after step {checkpoint_step(resume_from)}")
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer, checkpoint_step(resume_from) if resume_from else 0


def _shares_prefix(section: SFTSection, model: "PreTrainedModel") -> bool:
    """Sharing is exact without dropout, and needs the keys and values that recomputation drops."""
    exact = section.lora.dropout == 0 and not section.gradient_checkpointing
    return section.share_prefix and exact and supports_shared_prefix(model)


def _arguments(section: SFTSection, *, has_validation: bool) -> dict[str, Any]:
    return {
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": section.per_device_batch_size or 1,
        "per_device_eval_batch_size": 32,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule,
        "warmup_steps": section.warmup_fraction,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": "adamw_torch",
        "gradient_checkpointing": section.gradient_checkpointing,
        "save_steps": section.checkpoint_every_steps,
        "eval_strategy": "epoch" if has_validation else "no",
        "use_cpu": pick_device() == "cpu",
    }


def _clean_log(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The log without anything that differs between two equal runs, such as rates and times."""
    keep = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss")
    lines = [{key: entry[key] for key in keep if key in entry} for entry in history]
    return [line for line in lines if "loss" in line or "eval_loss" in line]


def _gates(model: "PreTrainedModel", before: dict[str, Any], losses: list[float]) -> list[Gate]:
    dtypes = trainable_dtypes(model)
    unreal = sum(not loss_is_real(loss) for loss in losses)
    return [
        check("adapter-dtype", ", ".join(sorted(dtypes)), "==", "float32", f"elements: {dtypes}"),
        check(
            "adapter-moved",
            round(moved_share(before, output_matrices(model)), 6),
            ">=",
            MIN_MOVED_SHARE,
            "share of the B matrices' elements that training changed",
        ),
        check("loss-is-real", unreal, "==", 0, f"of {len(losses)} logged losses"),
    ]


def _supervised(rows: "datasets.Dataset") -> int:
    return sum(label >= 0 for labels in rows["labels"] for label in labels)


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process; on CUDA the peak of the allocator."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STAGE = Stage(
    name="sft",
    order=40,
    summary="fine-tune a LoRA or QLoRA adapter",
    makes="adapter",
    version=1,
    section=SFTSection,
    run=run,
    slots=(Slot("base", "base", ("base",)), Slot("dataset", "dataset", ("prepare",))),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"),
)
