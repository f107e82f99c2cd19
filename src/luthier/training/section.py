"""What a config says about training: the fields that SFT and DPO share."""

import math
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.models.adapter_section import LoraSection
from luthier.models.quantization import QuantizationSection

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix_8bit",
    "adafactor",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_8bit",
    "sgd",
]
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "constant",
    "constant_with_warmup",
]
# Schedules that go down to `min_learning_rate_fraction` of the peak rate.
WITH_FLOOR = ("cosine_with_min_lr", "polynomial", "warmup_stable_decay")
# Optimizers that keep moments, and those of them that divide by the root of the second.
_WITH_EPSILON = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix_8bit",
)
_WITH_BETAS = (*_WITH_EPSILON, "lion_32bit", "lion_8bit", "paged_lion_8bit")
# Fields that only some values of another field read (transformers 5.23: trainer_optimizer.py,
# optimization.py). Given with others they would be ignored.
_READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "adam_beta1": ("optimizer", _WITH_BETAS),
    "adam_beta2": ("optimizer", _WITH_BETAS),
    "adam_epsilon": ("optimizer", _WITH_EPSILON),
    "min_learning_rate_fraction": ("schedule", WITH_FLOOR),
    "decay_fraction": ("schedule", ("warmup_stable_decay",)),
    "schedule_power": ("schedule", ("polynomial",)),
    "schedule_cycles": ("schedule", ("cosine_with_restarts",)),
}
_NEEDED_BY_SCHEDULE = {
    "cosine_with_min_lr": "min_learning_rate_fraction",
    "cosine_with_restarts": "schedule_cycles",
}
Switch = Literal["auto"] | bool
Hardware = Literal["auto", "cpu", "rtx-4090", "a100-40gb", "a100-80gb", "h100-80gb"]


class EarlyStoppingSection(Section):
    """Stop when the validation loss stops falling."""

    patience: int = Field(3, ge=1, description="evaluations without improvement before the stop")
    min_improvement: float = Field(
        0.0, ge=0, description="a smaller fall of the validation loss, in nats, is none"
    )


class PerformanceSection(Section):
    """What may be done to train faster. Each is exact up to rounding; auto decides by machine and
    model, and the manifest keeps what was decided and why."""

    share_prefix: Switch = Field(
        "auto", description="compute tokens that all rows of a batch begin with once"
    )
    supervised_head: Switch = Field(
        "auto", description="run the head on the positions that the loss reads only"
    )
    length_sorted: Switch = Field("auto", description="put rows of similar length in one batch")
    packing: Switch = Field(
        "auto", description="rows after one another instead of padding, isolated by attention"
    )
    split_batches: Switch = Field(
        "auto", description="batches of many tokens go through the model in parts"
    )
    fused_lora: Switch = Field("auto", description="one function for base, A and B of a layer")


class TrackingSection(Section):
    """Experiment trackers that get every logged number. Luthier itself sends nothing anywhere."""

    to: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = Field(
        ..., min_length=1, description="one or more of them"
    )
    project: str | None = Field(None, description="their project; else the run's name")
    folder: Path = Field(Path("tracking"), description="where trackers write")
    offline: bool = Field(
        True, description="write to that folder only; false: to servers as the environment says"
    )


class TrainingSection(Section):
    """Fields of every stage that trains; `stage_name` is what messages call the section."""

    stage_name: ClassVar[str]

    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="qlora: LoRA on a 4 or 8 bit base; full: every weight is trained"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter's shape")
    quantization: QuantizationSection = Field(
        QuantizationSection(), description="how qlora keeps the base"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="numerics of the frozen base; auto: bfloat16 on CUDA, float32 on a CPU"
    )
    # Result-free because the seed itself is in the key, wherever it is said.
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        json_schema_extra=result_free,
        description="of training alone: initial weights, order, dropout; null: the run's",
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="peak learning rate")
    optimizer: Optimizer = Field(
        "adamw_torch",
        description="by transformers' name; 8 bit and paged states are bitsandbytes', which keeps "
        "tensors of less than 4096 elements in 32 bits",
    )
    adam_beta1: float = Field(
        0.9, ge=0, lt=1, description="decay of the first moment, of Lion the weight in its update"
    )
    adam_beta2: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the second moment; null: 0.999, Lion's momentum 0.99",
    )
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled weight decay of matrices; vectors have none"
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="gradients are clipped to this norm; 0: never"
    )
    schedule: Schedule = Field("linear", description="learning rate after the warm-up")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of steps to warm up")
    warmup_steps: int | None = Field(
        None, ge=1, description="steps to warm up, instead of the share"
    )
    min_learning_rate_fraction: float | None = Field(
        None, ge=0, lt=1, description="floor of the schedule, a share of learning_rate"
    )
    decay_fraction: float = Field(
        0.1, gt=0, le=1, description="share of steps that warmup_stable_decay decays in"
    )
    schedule_power: float = Field(
        1.0, gt=0, description="of polynomial: 1 falls straight to the floor, 2 fast, then slowly"
    )
    schedule_cycles: int | None = Field(
        None, ge=2, description="of cosine_with_restarts: how often it falls from the peak rate"
    )
    epochs: float = Field(1, gt=0, le=1000, description="passes over the training rows")
    max_steps: int | None = Field(
        None, ge=1, description="optimizer steps, instead of a number of epochs"
    )
    batch_tokens: int | None = Field(
        None, ge=16, description="padded tokens of a batch; the other way to say its size"
    )
    per_device_batch_size: int | None = Field(None, ge=1, description="rows of a batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches of an optimizer step")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between validation losses; else after each epoch"
    )
    evaluate_every_fraction: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="validation loss after each such share of the steps; 0.25: after one, two and "
        "three quarters, and at the end",
    )
    early_stopping: EarlyStoppingSection | None = Field(
        None, description="stop when the validation loss stops falling"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="weights of the lowest validation loss, or of the last step"
    )
    performance: Literal["auto"] | PerformanceSection = Field(
        "auto", description="what may be done to train faster; auto decides all"
    )
    processes: int = Field(1, ge=1, description="one a GPU, under accelerate launch")
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2 splits weights over the processes; none keeps a copy in each"
    )
    checkpoint_every_steps: int = Field(
        20, ge=1, json_schema_extra=result_free, description="steps between checkpoints"
    )
    keep_checkpoints: int = Field(
        2, ge=1, json_schema_extra=result_free, description="newest checkpoints that stay"
    )
    # Result-free although rounding may differ: it must be possible to change it after the failure.
    on_oom: Literal["fail", "shrink"] = Field(
        "fail",
        json_schema_extra=result_free,
        description="out of memory: stop, or halve the batches and accumulate twice as many",
    )
    hardware: Hardware = Field(
        "auto", json_schema_extra=result_free, description="what plan predicts memory for"
    )
    tracking: TrackingSection | None = Field(
        None, json_schema_extra=result_free, description="experiment trackers, by name"
    )

    @model_validator(mode="after")
    def _one_batch_size(self) -> "TrainingSection":
        if (self.batch_tokens is None) == (self.per_device_batch_size is None):
            raise ValueError("give either batch_tokens or per_device_batch_size")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "TrainingSection":
        for name, (choice, readers) in _READ_BY.items():
            if self.is_given(name) and getattr(self, choice) not in readers:
                raise ValueError(
                    f"{name} has no meaning for the {choice} {getattr(self, choice)}; "
                    f"it has for {', '.join(readers)}"
                )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSection":
        if self.max_steps is not None and self.is_given("epochs"):
            raise ValueError("give either max_steps or epochs")
        if self.warmup_steps is not None and self.is_given("warmup_fraction"):
            raise ValueError("give either warmup_steps or warmup_fraction")
        if self.evaluate_every_steps is not None and self.evaluate_every_fraction is not None:
            raise ValueError("give either evaluate_every_steps or evaluate_every_fraction")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainingSection":
        needed = _NEEDED_BY_SCHEDULE.get(self.schedule)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"the schedule {self.schedule} needs {needed}")
        warms_up = self.warmup_steps is not None or self.warmup_fraction > 0
        asked_for = self.warmup_steps is not None or self.is_given("warmup_fraction")
        if self.schedule == "constant" and warms_up and asked_for:
            raise ValueError("the schedule constant has no warm-up; see constant_with_warmup")
        if self.schedule == "inverse_sqrt" and not warms_up:
            raise ValueError(
                "the schedule inverse_sqrt falls at the pace of its warm-up; give one"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "TrainingSection":
        if self.warmup_steps is not None and self.warmup_steps >= (self.max_steps or math.inf):
            raise ValueError("warmup_steps must be less than max_steps")
        decays = self.schedule == "warmup_stable_decay" and self.warmup_steps is None
        if decays and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction and decay_fraction make more than all steps")
        return self

    @model_validator(mode="after")
    def _packing_fits(self) -> "TrainingSection":
        if self.switches.packing is not True:
            return self
        if self.batch_tokens is None:
            raise ValueError("performance.packing needs batch_tokens, the length of a pack")
        if self.noise_alpha is not None:
            raise ValueError(
                "performance.packing with neftune_noise_alpha would scale the noise by the length "
                "of the pack instead of the row's; give up one of the two"
            )
        return self

    @model_validator(mode="after")
    def _sharding_fits(self) -> "TrainingSection":
        if self.sharding != "none" and self.processes < 2:
            raise ValueError(f"sharding: {self.sharding} needs processes: 2 or more")
        return self

    @property
    def noise_alpha(self) -> float | None:
        """Scale of the noise on the embeddings, for stages that may have one."""
        return None

    def is_given(self, name: str) -> bool:
        """Whether a field is not its default; a job read from JSON has every field set."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def switches(self) -> PerformanceSection:
        """The performance section, `auto` spelt out."""
        return PerformanceSection() if self.performance == "auto" else self.performance
