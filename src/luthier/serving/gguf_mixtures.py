"""Which type llama.cpp gives each tensor in its mixtures Q6_K, Q5_K_M, Q4_K_M and Q4_0.

The rules of `llama_tensor_get_type_impl`, `tensor_type_fallback` and `tensor_allows_quantization`
in llama.cpp's src/llama-quant.cpp (b11434), for these four alone: the wheel that has llama.cpp's
quantisers of rows does not export the function with the rules. A test holds the made files to the
bytes of the real `llama_model_quantize`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.errors import ServingError
from luthier.serving.gguf_file import GGUFHeader, GGUFTensor

Mixture = Literal["q6_k", "q5_k_m", "q4_k_m", "q4_0"]

# Numbers of `enum ggml_type` (ggml.h)
F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 1, 2, 3, 6, 7, 8, 12, 13, 14
FILE_TYPES: Mapping[Mixture, int] = {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15, "q4_0": 2}
"""Numbers of `enum llama_ftype` (llama.h), which go into `general.file_type`."""

_DEFAULTS: Mapping[Mixture, int] = {"q6_k": Q6_K, "q5_k_m": Q5_K, "q4_k_m": Q4_K, "q4_0": Q4_0}
_FALLBACKS = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
_BLOCK_COLUMNS, _SUPER_BLOCK_COLUMNS = 32, 256
_OWN_RULES = ("falcon", "glm5-next")  # architectures with exceptions that are not told below
_SEVENTY_BILLION = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}  # layers
_EXPERTS_OF_MIXTRAL = 8

# Kept as they are: small beside the rest, or too sensitive.
_KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_TOKEN_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
_ATTENTION_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


def in_llama_order(tensors: Mapping[str, GGUFTensor]) -> list[GGUFTensor]:
    """By layer, then by name; what belongs to no layer first (`weight_name_comparer`)."""
    return sorted(tensors.values(), key=lambda tensor: (_layer(tensor.name), tensor.name))


def planned_types(header: GGUFHeader, mixture: Mixture, *, weighted: bool) -> Mapping[str, int]:
    """The type of every tensor, a number of `enum ggml_type`; its own where it is kept.

    Args:
        header: of a GGUF with 16-bit or 32-bit weights.
        weighted: an importance matrix is given, which changes one rule of Q4_0.

    Raises:
        ServingError: llama.cpp has other rules for this architecture.
    """
    architecture = str(header.metadata["general.architecture"])
    if architecture in _OWN_RULES:
        raise ServingError(
            f"{architecture}: llama.cpp has rules of its own for this architecture's {mixture}, "
            "which Luthier does not know. Take q8_0, f16 or bf16."
        )
    tensors = in_llama_order(header.tensors)
    rules = _Rules(
        mixture=mixture,
        weighted=weighted,
        layers=int(header.metadata[f"{architecture}.block_count"]),
        experts=int(header.metadata.get(f"{architecture}.expert_count", 0)),
        value_tensors=sum(_names_any(tensor.name, _ATTENTION_VALUES) for tensor in tensors),
        tied="output.weight" not in header.tensors,
        seventy_billion=_is_seventy_billion(header, architecture),
    )
    return {
        tensor.name: _fitting(rules.wanted(tensor), tensor.shape[0])
        if _is_quantized(tensor)
        else tensor.kind
        for tensor in tensors
    }


@dataclass
class _Rules:
    """The state that llama.cpp keeps while it goes through the tensors in its order."""

    mixture: Mixture
    weighted: bool
    layers: int
    experts: int
    value_tensors: int
    tied: bool
    seventy_billion: bool
    values_seen: int = 0
    downs_seen: int = 0

    def wanted(self, tensor: GGUFTensor) -> int:
        """The type before its rows are measured; call in llama.cpp's order, once a tensor."""
        name, default = tensor.name, _DEFAULTS[self.mixture]
        if name == "output.weight" or (self.tied and name in _TOKEN_TABLES):
            return Q8_0 if tensor.shape[0] % _columns(default) else Q6_K
        if name in _TOKEN_TABLES:
            return default
        if _names_any(name, _ATTENTION_VALUES):
            return self._values(default)
        if "attn_k.weight" in name and self.experts == _EXPERTS_OF_MIXTRAL:
            return Q8_0
        if "attn_output.weight" in name and self.experts == _EXPERTS_OF_MIXTRAL:
            return Q5_K if self.mixture == "q4_k_m" else default
        if "ffn_down" in name:
            return self._down(name, default)
        return default

    def _values(self, default: int) -> int:
        kind, index = default, self.values_seen
        self.values_seen += 1
        if self.experts == _EXPERTS_OF_MIXTRAL:
            return Q8_0
        if self.mixture in ("q4_k_m", "q5_k_m") and _more_bits(index, self.value_tensors):
            kind = Q6_K
        return Q5_K if self.seventy_billion and kind == Q4_K else kind

    def _down(self, name: str, default: int) -> int:
        index = _layer(name) if self.experts > 1 else self.downs_seen
        self.downs_seen += 1
        if self.mixture in ("q4_k_m", "q5_k_m") and _more_bits(index, self.layers):
            return Q6_K
        if self.mixture == "q4_0" and self.weighted and index < self.layers // 8:
            return Q4_1
        return default


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third of those between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _is_quantized(tensor: GGUFTensor) -> bool:
    # ggml_n_dims: trailing dimensions of 1 do not count
    shape = list(tensor.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return (
        len(shape) > 1
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not _names_any(tensor.name, _KEPT_PARTS)
    )


def _fitting(kind: int, columns: int) -> int:
    """`kind`, or what llama.cpp takes instead where a row is no whole number of its blocks."""
    if columns % _columns(kind):
        kind = _FALLBACKS.get(kind, kind)
    return F16 if columns % _columns(kind) else kind


def _columns(kind: int) -> int:
    return _SUPER_BLOCK_COLUMNS if kind in _FALLBACKS else _BLOCK_COLUMNS


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _names_any(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _is_seventy_billion(header: GGUFHeader, architecture: str) -> bool:
    if header.metadata[f"{architecture}.block_count"] != _SEVENTY_BILLION.get(architecture):
        return False
    heads = header.metadata.get(f"{architecture}.attention.head_count")
    return architecture != "llama" or heads != header.metadata.get(
        f"{architecture}.attention.head_count_kv"
    )
