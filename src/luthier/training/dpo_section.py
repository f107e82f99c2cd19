"""What a config says about preference optimisation, beside what all training shares."""

from typing import ClassVar, Literal

from pydantic import model_validator

from luthier.config import Field
from luthier.models.adapter_section import check_method
from luthier.training.section import TrainingSection

# As TRL 1.16 names them (trainer/dpo_config.py `loss_type`; simpo: experimental/cpo; orpo: the
# odds ratio alone, experimental/orpo). Its `aot` losses are left out: they sort the batch.
LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "simpo",
    "orpo",
    "sft",
]
# Fields that only some losses read.
_READ_BY: dict[str, tuple[LossType, ...]] = {
    "label_smoothing": ("robust", "exo_pair"),
    "simpo_gamma": ("simpo",),
    "discopop_tau": ("discopop",),
}
# What the SFT adapter brings when training goes on from it.
_BROUGHT = ("method", "lora", "quantization", "dtype")


class DPOSection(TrainingSection):
    """Preference optimisation: of two replies, the chosen one is made likelier against the
    reference, which is the model as it is when this stage begins."""

    stage_name: ClassVar[str] = "dpo"

    reference: Literal["sft", "base"] = Field(
        "sft",
        description="sft: go on with the SFT adapter, whose frozen state is the reference; base: "
        "begin with a fresh adapter on the base, which is the reference",
    )
    method: Literal["lora", "qlora"] = Field(
        "lora", description="with reference: base; else the SFT adapter brings it"
    )
    learning_rate: float = Field(2e-5, gt=0, le=1, description="peak learning rate")
    loss_type: list[LossType] = Field(
        ["sigmoid"],
        min_length=1,
        description="one or more of TRL's losses, added up by loss_weights; sft: -log p of the "
        "chosen replies, nats a token",
    )
    loss_weights: list[float] | None = Field(
        None, description="one for each of loss_type; null: 1 each"
    )
    beta: float = Field(
        0.1, gt=0, description="how much leaving the reference costs; of ipo its tau"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="of robust and exo_pair: share of pairs that are reversed"
    )
    simpo_gamma: float = Field(0.5, ge=0, description="of simpo: the margin that is wanted")
    discopop_tau: float = Field(0.05, gt=0, description="of discopop: its temperature")
    ld_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the tokens of the longer reply beyond the length of the shorter "
        "(LD-DPO); null: 1",
    )
    max_likelihood_drop: float = Field(
        0.1,
        ge=0,
        description="F25: how far the held-out chosen replies may become less likely than under "
        "the reference, nats a token",
    )

    @property
    def weights(self) -> list[float]:
        """One for each of `loss_type`."""
        return self.loss_weights or [1.0] * len(self.loss_type)

    @model_validator(mode="after")
    def _losses_fit(self) -> "DPOSection":
        if len(set(self.loss_type)) < len(self.loss_type):
            raise ValueError("loss_type names a loss twice; give it a weight instead")
        if len(self.weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.weights)} numbers and loss_type "
                f"{len(self.loss_type)} names; give one for each"
            )
        if set(self.loss_type) == {"sft"}:
            raise ValueError("loss_type: [sft] alone learns nothing of the rejected replies")
        for name, readers in _READ_BY.items():
            if self.is_given(name) and not set(readers) & set(self.loss_type):
                raise ValueError(f"{name} has no meaning without {' or '.join(readers)}")
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise ValueError(
                "exo_pair needs a label_smoothing above 0; its paper (arXiv 2402.00856) has 1e-3"
            )
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "DPOSection":
        if self.lora.dropout:
            raise ValueError(
                "lora.dropout has no place in dpo: noise would part the model from its reference"
            )
        check_method(self.lora, quantized=self.method == "qlora")
        return self

    @model_validator(mode="after")
    def _one_process(self) -> "DPOSection":
        if self.processes > 1:
            raise ValueError("processes: dpo trains in one process")
        if self.switches.packing is True:
            raise ValueError(
                "performance.packing has no place in dpo: a pair's two replies share a sequence "
                "already (performance.share_prefix)"
            )
        return self

    def on_from(self, trained: TrainingSection) -> "DPOSection":
        """This section with what an SFT adapter brings: its shape and its base's numerics."""
        lora = trained.lora.model_copy(update={"dropout": 0.0, "init_lora_weights": "default"})
        brought = {name: getattr(trained, name) for name in _BROUGHT}
        return DPOSection.model_validate(dict(self) | brought | {"lora": lora})

    def brought_by_sft(self) -> list[str]:
        """The fields given here although `reference: sft` takes them from the SFT adapter."""
        return [name for name in _BROUGHT if self.reference == "sft" and self.is_given(name)]
