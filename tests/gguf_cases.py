"""Small GGUFs made of formulas: the same bytes wherever they are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

VOCABULARY = 64


@dataclass(frozen=True)
class Shape:
    """A model that llama.cpp's quantiser takes for one: names and row lengths are all it sees."""

    architecture: str = "llama"
    layers: int = 9
    columns: int = 256
    tied: bool = False
    experts: int = 0
    fused: bool = False
    dtype: str = "f16"


def numbers(count: int, seed: int) -> np.ndarray:
    """(count,) float32 in -1..1 without a pattern: Knuth's multiplicative hash, twice."""
    x = np.arange(count, dtype=np.uint64) + np.uint64(seed * 7919)
    for _ in range(2):
        x = (x * np.uint64(2654435761)) % np.uint64(2**32)
        x ^= x >> np.uint64(15)
    return ((x.astype(np.float64) / 2**31 - 1) * 0.1).astype(np.float32)


def write_gguf(path: Path, shape: Shape) -> Path:
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(shape.columns)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(2 * shape.columns)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(shape.columns // 8)
    writer.add_sliding_window(64)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    writer.add_file_type(1)
    writer.add_quantization_version(2)
    writer.add_string("tokenizer.ggml.model", "none")
    for seed, (name, size) in enumerate(_tensors(shape).items()):
        values = numbers(int(np.prod(size)), seed).reshape(size)
        if len(size) == 1 or shape.dtype == "f32":
            writer.add_tensor(name, values)
        elif shape.dtype == "f16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(shape: Shape) -> Mapping[str, tuple[int, ...]]:
    c, d = shape.columns, 2 * shape.columns
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, c)}
    for layer in range(shape.layers):
        parts: dict[str, tuple[int, ...]] = {"attn_norm": (c,), "attn_output": (32, c)}
        if shape.fused:
            parts |= {"attn_qkv": (48, c)}
        else:
            parts |= {"attn_q": (32, c), "attn_k": (8, c), "attn_v": (8, c), "ffn_gate": (16, c)}
        if shape.experts:
            parts |= {"ffn_gate_inp": (shape.experts, c)}
            parts |= {f"ffn_{n}_exps": (shape.experts, 4, c) for n in ("gate", "up")}
            parts |= {"ffn_down_exps": (shape.experts, 4, d)}
            parts.pop("ffn_gate", None)
        else:
            parts |= {"ffn_up": (16, c), "ffn_down": (16, d)}
        found |= {f"blk.{layer}.{name}.weight": size for name, size in parts.items()}
    found["output_norm.weight"] = (c,)
    return found if shape.tied else found | {"output.weight": (VOCABULARY, c)}


SHAPES: Mapping[str, Shape] = {
    "llama": Shape(layers=18),
    "tied-bf16": Shape(columns=512, tied=True, dtype="bf16"),
    "rows-of-64": Shape(columns=64, dtype="f32"),
    "rows-of-72": Shape(columns=72),
    "phi3": Shape("phi3", layers=16, fused=True),
    "gemma2": Shape("gemma2", layers=10, tied=True),
    "mixtral": Shape(experts=8),
    "four-experts": Shape(experts=4),
    "seventy-billion": Shape(layers=80),
}


def write_importance(path: Path) -> Path:
    """An importance matrix for `SHAPES["llama"]`."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["formula"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 7)
    for seed, (name, size) in enumerate(sorted(_tensors(SHAPES["llama"]).items())):
        if name.startswith("blk.") and len(size) > 1:
            sums = np.square(30 * numbers(size[-1], 1000 + seed)) + np.float32(0.1)
            writer.add_tensor(f"{name}.in_sum2", sums[np.newaxis])
            writer.add_tensor(f"{name}.counts", np.full((1, 1), 21, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
