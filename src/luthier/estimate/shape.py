"""What is trained, how, and on which batches: all that memory and time depend on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from luthier.errors import ConfigError
from luthier.estimate.architecture import Architecture, LinearModule, matches

DType = Literal["float32", "bfloat16", "float16"]
Method = Literal["lora", "qlora", "full"]
Quantization = Literal["nf4", "fp4", "int8"]
Attention = Literal["sdpa", "flash", "eager"]

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_BYTES = 4  # trainable parameters are float32 (FAILURES F14)

# bitsandbytes' blockwise 8-bit states have one float32 scale for 256 elements; tensors of fewer
# than 4096 elements, few in an adapter, stay in 32 bits (bitsandbytes 0.50 `optim/optimizer.py`).
_EIGHT_BIT = 1 + 4 / 256
STATE_BYTES: Mapping[str, float] = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_bnb_8bit": 2 * _EIGHT_BIT,
    "adamw_8bit": 2 * _EIGHT_BIT, "adamw_torch_8bit": 2 * _EIGHT_BIT, "adamw_torch_4bit": 1.125,
    "paged_adamw_32bit": 8, "paged_adamw_8bit": 2 * _EIGHT_BIT, "lion_32bit": 4,
    "lion_8bit": _EIGHT_BIT, "paged_lion_32bit": 4, "paged_lion_8bit": _EIGHT_BIT,
    "ademamix": 12, "ademamix_8bit": 3 * _EIGHT_BIT, "paged_ademamix_32bit": 12,
    "paged_ademamix_8bit": 3 * _EIGHT_BIT, "adagrad": 4, "rmsprop": 4, "rmsprop_bnb": 4,
    "rmsprop_bnb_32bit": 4, "rmsprop_bnb_8bit": _EIGHT_BIT, "sgd": 0, "stable_adamw": 8,
    "schedule_free_adamw": 8, "grokadamw": 12,
}  # fmt: skip
"""Bytes of state for each trained float32 element, by transformers' `optim` name; `adafactor`
keeps a row and a column for each matrix instead."""


@dataclass(frozen=True)
class AdapterShape:
    """A LoRA adapter, in PEFT's words."""

    r: int = 16
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None

    def rank(self, module: LinearModule) -> int:
        """The module's rank; 0 when it is not adapted. A key of `rank_pattern` is a regular
        expression for the end of the name (peft 0.21 `get_pattern_key`)."""
        if not matches(module, self.target_modules) or not self._has_layer(module):
            return 0
        if matches(module, self.exclude_modules):
            return 0
        for pattern, rank in self.rank_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module.name):
                return rank
        return self.r

    def _has_layer(self, module: LinearModule) -> bool:
        if self.layers_to_transform is None:
            return True
        numbers = [part for part in module.name.split(".") if part.isdigit()]
        return bool(numbers) and int(numbers[0]) in self.layers_to_transform


@dataclass(frozen=True)
class TrainingShape:
    """One optimizer step's numbers. `dtype` is that of the hidden states and of every weight that
    is not quantised."""

    method: Method = "lora"
    dtype: DType = "float32"
    adapter: AdapterShape | None = AdapterShape()
    quantization: Quantization | None = None
    double_quantization: bool = True
    compute_dtype: DType = "float32"
    """What 4-bit weights are unpacked to for a multiplication."""
    optimizer: str = "adamw_torch"
    rows: int = 1
    """Rows that go through the model together: the micro-batch of one process."""
    tokens_per_row: int = 1024
    """Padded width, shared prefix included."""
    supervised_tokens_per_row: int = 1024
    head_positions_per_row: int | None = None
    """Positions of the batch where any row has a label, where the head runs on those of all rows;
    None: on each row's own supervised ones."""
    shared_prefix_tokens: int = 0
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    attention: Attention = "sdpa"
    fused_kernels: bool = False
    """`training/kernels.py` covers adapters, norms and gates."""
    masked: bool = False
    """Attention gets a mask of every pair of tokens: packed rows with block-diagonal masks."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a shape that cannot be."""
        if self.optimizer != "adafactor" and self.optimizer not in STATE_BYTES:
            raise ConfigError(
                f"sft.optimizer: no memory is known for {self.optimizer}. Known: "
                f"{', '.join(sorted([*STATE_BYTES, 'adafactor']))}."
            )
        if (self.method == "full") != (self.adapter is None):
            raise ConfigError("an adapter is needed for lora and qlora, and none for full")
        if (self.method == "qlora") != (self.quantization is not None):
            raise ConfigError("a quantisation is needed for qlora, and none for lora and full")

    @property
    def model_tokens(self) -> int:
        """Tokens that go through the layers in one micro-batch; a shared prefix counts once."""
        prefix = self.shared_prefix_tokens
        return self.rows * (self.tokens_per_row - prefix) + prefix

    def with_rows(self, rows: int) -> "TrainingShape":
        """The same with another micro-batch."""
        return replace(self, rows=rows)

    def with_length(self, tokens: int) -> "TrainingShape":
        """The same with rows cut to `tokens`, the prefix and labels with them."""
        positions = self.head_positions_per_row
        return replace(
            self,
            tokens_per_row=tokens,
            supervised_tokens_per_row=min(self.supervised_tokens_per_row, tokens),
            head_positions_per_row=min(positions, tokens) if positions else None,
            shared_prefix_tokens=min(self.shared_prefix_tokens, tokens - 1),
        )


@dataclass(frozen=True)
class Trained:
    """What is trained: elements, and what Adafactor keeps of them."""

    parameters: int
    adafactor_elements: int
    largest: int
    """Elements of the largest trained tensor."""


def trained(architecture: Architecture, shape: TrainingShape) -> Trained:
    """The trained parameters.

    Raises:
        ConfigError: no module of the model has a name in `target_modules`.
    """
    matrices = [(1, architecture.norm_parameters)] if shape.adapter is None else []
    if shape.adapter is None:
        matrices += [(m.outputs, m.inputs) for m in architecture.modules]
        matrices += [(m.outputs, 1) for m in architecture.modules if m.bias]
        matrices += [(architecture.vocabulary, architecture.hidden)] * (2 - architecture.tied)
        rest = architecture.parameters - sum(rows * columns for rows, columns in matrices)
        matrices.append((1, rest))
    else:
        matrices += _adapter_matrices(architecture, shape.adapter)
    return Trained(
        parameters=sum(rows * columns for rows, columns in matrices),
        adafactor_elements=sum(rows + columns for rows, columns in matrices),
        largest=max(rows * columns for rows, columns in matrices),
    )


def _adapter_matrices(architecture: Architecture, adapter: AdapterShape) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for module in architecture.modules:
        rank = adapter.rank(module)
        if rank:
            found += [(rank, module.inputs), (module.outputs, rank)]
            found += [(module.outputs, 1)] * adapter.use_dora
    if not found:
        targets = adapter.target_modules
        named = targets if isinstance(targets, str) else " or ".join(targets)
        raise ConfigError(
            f"sft.lora.target_modules: the model has no linear module {named}. "
            f"It has {', '.join(sorted({m.suffix for m in architecture.layer_modules}))}."
        )
    whole = {"lm_head", "embed_tokens"} & set(adapter.modules_to_save)
    return found + [(architecture.vocabulary, architecture.hidden)] * len(whole)
