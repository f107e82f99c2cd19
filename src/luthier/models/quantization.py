"""Quantised bases (QLoRA): the settings, and what the quantised weights decode to."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError, model_validator

from luthier.config import Field, Section
from luthier.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

DType = Literal["float32", "bfloat16", "float16"]


class QuantizationSection(Section):
    """How the frozen base is quantised (bitsandbytes)."""

    type: Literal["nf4", "fp4", "int8"] = Field(
        "nf4",
        description="nf4: 4-bit NormalFloat; fp4: 4-bit float; int8: 8-bit rows, LLM.int8()",
    )
    double_quantization: bool = Field(
        True, description="quantise the 4-bit blocks' scales too: 0.4 bits a parameter less"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="numerics of 4-bit matrix products; auto: those of the base"
    )
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] = Field(
        "uint8",
        description="type that 4-bit weights are packed in, the values stay; for FSDP the base's",
    )

    @model_validator(mode="after")
    def _only_for_4_bit(self) -> "QuantizationSection":
        four_bit_only = ("compute_dtype", "storage_dtype", "double_quantization")
        defaults = {name: type(self).model_fields[name].default for name in four_bit_only}
        changed = [name for name, value in defaults.items() if getattr(self, name) != value]
        if self.type == "int8" and changed:
            raise ValueError(f"type: int8 has no {', '.join(changed)}; leave it out")
        return self


# A section, its JSON form (`key_fields`, as manifests keep it), or a type with its defaults.
Quantization = QuantizationSection | Mapping[str, Any] | str


def quantization_section(value: Quantization) -> QuantizationSection:
    """The section that `value` means.

    Raises:
        ModelError: it is none.
    """
    if isinstance(value, QuantizationSection):
        return value
    fields = {"type": value} if isinstance(value, str) else value
    try:
        return QuantizationSection.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"quantization: {value!r} is not one that Luthier knows: {error}") from (
            error
        )


def bitsandbytes_config(value: Quantization, dtype: DType) -> Any:
    """transformers' `BitsAndBytesConfig`; computing in `dtype` where the section says auto.

    NF4 and double quantisation: QLoRA, arXiv 2305.14314; int8: LLM.int8(), arXiv 2208.07339, with
    transformers' threshold for outliers (6.0).
    """
    import torch
    from transformers import BitsAndBytesConfig

    section = quantization_section(value)
    if section.type == "int8":
        # It says in every call of every layer that activations are cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if section.compute_dtype == "auto" else section.compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.type,
        bnb_4bit_use_double_quant=section.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        bnb_4bit_quant_storage=getattr(torch, section.storage_dtype),
    )


def quantised_modules(model: "nn.Module") -> "Iterator[tuple[str, nn.Module]]":
    """Every bitsandbytes linear layer with its name, inside an adapter's layer or not."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield name, module


def keep_layout(model: "nn.Module") -> None:
    """Keep 4-bit layers from repacking their weights for inference on a CPU.

    bitsandbytes 0.50 does so in the first forward in eval mode on processors with AVX512-BF16
    (nn/modules.py, Linear4bit.forward), for good. From then on products are rounded to bfloat16
    whatever the compute dtype, and nothing flows back through them: the operator has no gradient.
    A model that is evaluated before or while it trains gets wrong gradients, with a warning only.
    """
    for _, module in quantised_modules(model):
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dequantised(module: "nn.Module") -> "Tensor":
    """The float32 weights (out, in) that a quantised layer computes with."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module).detach().float()  # type: ignore[no-any-return]
