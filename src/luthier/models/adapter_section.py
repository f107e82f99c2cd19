"""What a run config says about its adapter, and which of it cannot go together."""

import re
from typing import Literal

from pydantic import field_validator, model_validator

from luthier.config import Field, Section

# Initialisations that take a part out of the base's weights: PiSSA (arXiv 2404.02948) and OLoRA
# (arXiv 2406.01775). Their adapter is right on the changed base only, until it is converted.
CHANGES_BASE = ("pissa", "olora")
Initialisation = Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"]


class LoraSection(Section):
    """The adapter's shape, named as PEFT names it."""

    r: int = Field(16, gt=0, le=1024, description="rank of the update matrices")
    alpha: int = Field(
        32, gt=0, description="the update is scaled by alpha / r, with use_rslora by alpha / √r"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the A matrices, a share")
    target_modules: str | list[str] = Field(
        "all-linear",
        min_length=1,
        description="all-linear; or names of modules; or one pattern that matches whole names",
    )
    exclude_modules: str | list[str] | None = Field(
        None, description="targets to leave out: names, or one pattern that matches whole names"
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="other ranks by the end of a module's name, a pattern"
    )
    alpha_pattern: dict[str, int] = Field(
        default_factory=dict, description="other alphas by the end of a module's name, a pattern"
    )
    layers_to_transform: list[int] | None = Field(
        None, description="adapt these layers only, from 0; null: all"
    )
    layers_pattern: str | None = Field(
        None, description="name of the list that layers are numbered in, where it is unusual"
    )
    use_rslora: bool = Field(False, description="scale by alpha / √r: rank-stabilised LoRA")
    use_dora: bool = Field(
        False, description="learn the weights' magnitudes apart from their directions: DoRA"
    )
    init_lora_weights: Initialisation = Field(
        "default",
        description="how the matrices start; eva looks at training rows, loftq at the error of "
        "quantisation, pissa and olora at the weights (the saved adapter fits the plain base)",
    )
    pissa_niter: int | None = Field(
        None, ge=0, description="iterations of PiSSA's fast SVD, 16 is common; null: exact SVD"
    )
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: B learns this many times faster than A; null: the same"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules that are trained whole, beside the adapter"
    )
    train_embeddings: bool = Field(
        False, description="train input and output embeddings whole; tied ones stay tied"
    )
    trainable_token_indices: list[int] | None = Field(
        None, min_length=1, description="train the embeddings of these token ids only"
    )

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _positive(cls, found: dict[str, int]) -> dict[str, int]:
        for pattern, value in found.items():
            if value < 1:
                raise ValueError(f"has {value} for {pattern!r}; give at least 1")
        return found

    @model_validator(mode="after")
    def _no_contradiction(self) -> "LoraSection":
        for pattern in self._patterns():
            _check_pattern(pattern)
        problem = self._of_layers() or self._of_start() or self._of_embeddings()
        if problem:
            raise ValueError(problem)
        return self

    def _patterns(self) -> list[str]:
        one = [self.target_modules, self.exclude_modules, self.layers_pattern]
        return [*(p for p in one if isinstance(p, str)), *self.rank_pattern, *self.alpha_pattern]

    def _of_layers(self) -> str | None:
        is_pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if self.layers_to_transform is not None and is_pattern:
            return (
                "layers_to_transform needs target_modules as names or all-linear; with a pattern, "
                "put the layer numbers into the pattern"
            )
        if self.layers_to_transform == []:
            return "layers_to_transform names no layer; leave it out to adapt all"
        if self.layers_pattern is not None and self.layers_to_transform is None:
            return "layers_pattern needs layers_to_transform; leave it out, or name the layers"
        return None

    def _of_start(self) -> str | None:
        if self.pissa_niter is not None and self.init_lora_weights != "pissa":
            return "pissa_niter needs init_lora_weights: pissa; leave it out"
        if self.use_dora and self.init_lora_weights == "loftq":
            return (
                "use_dora takes the magnitudes of the quantised base before loftq corrects it; "
                "use one of the two"
            )
        return None

    def _of_embeddings(self) -> str | None:
        if self.trainable_token_indices is None:
            return None
        if self.train_embeddings:
            return "train_embeddings trains every token; leave out trainable_token_indices"
        if min(self.trainable_token_indices) < 0:
            return "trainable_token_indices are token ids, from 0"
        if len(set(self.trainable_token_indices)) < len(self.trainable_token_indices):
            return "trainable_token_indices names a token id twice"
        return None


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def check_method(section: LoraSection, quantized: bool) -> None:
    """Whether this adapter can be trained on a base that is, or is not, quantised.

    Raises:
        ValueError: it cannot; the text says what to change.
    """
    start = section.init_lora_weights
    if start in CHANGES_BASE and quantized:
        raise ValueError(
            f"lora.init_lora_weights: {start} takes a part out of the base's weights, which a "
            "quantised base cannot hold exactly; use loftq, eva or default, or method: lora"
        )
    if start == "loftq" and not quantized:
        raise ValueError(
            "lora.init_lora_weights: loftq corrects the error of quantisation, and this base is "
            "not quantised; use default, or method: qlora"
        )
