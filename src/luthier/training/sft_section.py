"""What a config says about supervised fine-tuning, beside what all training shares."""

from typing import Annotated, ClassVar

from pydantic import Field as Bounded
from pydantic import model_validator

from luthier.config import Field, result_free
from luthier.models.adapter_section import check_method
from luthier.training.section import TrainingSection


class SFTSection(TrainingSection):
    """Supervised fine-tuning."""

    stage_name: ClassVar[str] = "sft"

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target spread over the whole vocabulary"
    )
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="noise on the embeddings in training (NEFTune, arXiv 2310.05914)"
    )
    start_from: Annotated[str, Bounded(min_length=1)] | None = Field(
        None,
        json_schema_extra=result_free,
        description="an adapter to go on from, such as name/adapter@v2; its digest is in the key",
    )

    @property
    def noise_alpha(self) -> float | None:
        """NEFTune's."""
        return self.neftune_noise_alpha

    @model_validator(mode="after")
    def _method_fits(self) -> "SFTSection":
        if self.is_given("quantization") and self.method != "qlora":
            raise ValueError(f"quantization has no meaning for method: {self.method}, only qlora")
        if self.is_given("lora") and self.method == "full":
            raise ValueError("lora has no meaning for method: full, which trains every weight")
        if self.start_from is not None and self.is_given("lora"):
            raise ValueError("start_from brings the adapter's shape; leave out lora")
        if self.method != "full":
            check_method(self.lora, quantized=self.method == "qlora")
        return self
