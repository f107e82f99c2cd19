"""The section of the stage `export`: targets, GGUF types, and how far serving may differ."""

from typing import Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.serving.converter import GGUFType

Target = Literal["vllm", "vllm-adapter", "gguf", "ollama", "hub"]


class ExportSection(Section):
    """What to export, and how far serving may differ from the merged model."""

    targets: list[Target] = Field(
        ["vllm", "ollama"],
        min_length=1,
        description="vllm: the merged model; vllm-adapter: the adapter on its base; gguf; ollama: "
        "GGUF with a Modelfile; hub: a folder to upload",
    )
    gguf_quantization: list[GGUFType] = Field(
        ["q8_0"], min_length=1, description="GGUF types; the first is the Modelfile's"
    )
    importance_matrix: bool = Field(
        False,
        description="weigh the rounding of k-quants and q4_0 by what validation rows bring to "
        "each layer",
    )
    ollama_template: bool = Field(
        False, description="write the chat template into the Modelfile too, as a Go template"
    )
    adapters: dict[str, str] = Field(
        default_factory=dict,
        description="for vllm-adapter: further adapters of the same base, a version by its name",
        json_schema_extra=result_free,
    )
    context_length_tokens: int = Field(
        4096,
        ge=128,
        description="context that servers are told to keep, tokens; at most what the model has",
    )
    probe_rows: int = Field(100, ge=1, description="held-out rows answered through the server")
    max_mean_kl_nats: float | None = Field(
        None,
        gt=0,
        description="greatest divergence from the merged model a token; null: the type's own",
    )
    min_token_agreement: float | None = Field(
        None, ge=0, le=1, description="least share of tokens that are the merged model's likeliest"
    )
    min_greedy_agreement: float | None = Field(
        None,
        ge=0,
        le=1,
        description="least share of probes with the merged model's whole answer; null: the type's",
    )
    max_score_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="greatest loss of accuracy by serving, 0 to 1; null: the type's own",
    )

    @model_validator(mode="after")
    def _adapters_are_served(self) -> Self:
        if self.adapters and "vllm-adapter" not in self.targets:
            raise ValueError("adapters are for the target vllm-adapter, which is not in targets")
        return self

    @property
    def makes_gguf(self) -> bool:
        """Whether a target is of GGUF files."""
        return "gguf" in self.targets or "ollama" in self.targets

    @property
    def limits(self) -> dict[str, float | None]:
        """The limits set in place of the types' own."""
        names = ("max_mean_kl_nats", "min_token_agreement", "min_greedy_agreement")
        return {name: getattr(self, name) for name in (*names, "max_score_drop")}
