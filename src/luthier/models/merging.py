"""Merging a LoRA adapter into a base's weights, file by file, in float32.

W' = W + scale * B @ A, with scale = alpha / r (arXiv 2106.09685, section 4.1) or alpha / sqrt(r)
for rank-stabilised LoRA (arXiv 2312.03732), as PEFT applies it (peft `tuners/lora/layer.py`).
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.loading import DType, load_model
from luthier.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.models.weights import shards
from luthier.store.files import temporary_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_PEFT_PREFIX = "base_model.model."
# Adapter features whose merge is another formula than the one above.
_REFUSED = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
)


@dataclass(frozen=True)
class MergeReport:
    """What merging did: tensors changed, and the error of the applied update relative to it."""

    changed_tensors: int
    relative_delta_error: float


def adapter_deltas(adapter: Path) -> "dict[str, tuple[Tensor, Tensor, float]]":
    """(A, B, scale) by name of the base tensor that they change; A is (r, in), B is (out, r).

    Raises:
        ModelError: the adapter has something that this merge does not do.
    """
    from safetensors.torch import load_file

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    refused = [name for name in _REFUSED if config.get(name)]
    if refused:
        raise ModelError(f"{adapter}: cannot merge an adapter with {', '.join(refused)}.")
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    deltas: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            target = f"{module.removeprefix(_PEFT_PREFIX)}.weight"
            deltas[target] = (tensors[name], tensors[f"{module}.lora_B.weight"], scale)
    if 2 * len(deltas) != len(tensors):
        raise ModelError(f"{adapter}: it holds tensors that are no LoRA matrices; cannot merge.")
    return deltas


def merge(
    base: Path, adapter: Path, folder: Path, replaced: "Mapping[str, Tensor] | None" = None
) -> MergeReport:
    """Write base + adapter to `folder` in float32, with the base's config and tokenizer files.

    Args:
        base: model folder; one weight file at a time is in memory.
        adapter: PEFT folder.
        folder: where to write; existing files of the same names are replaced.
        replaced: base tensors to take instead of the stored ones (a dequantised base).

    Raises:
        ModelError: the adapter changes a tensor that the base does not have.
    """
    from safetensors.torch import save_file

    deltas = adapter_deltas(adapter)
    left, squared_error, squared_delta = set(deltas), 0.0, 0.0
    for path, tensors in shards(base):
        merged: dict[str, Tensor] = {}
        for name, stored in tensors.items():
            weight = (replaced or {}).get(name, stored).float()
            if name in deltas:
                a, b, scale = deltas[name]
                delta = scale * (b.float() @ a.float())
                after = weight + delta
                squared_error += float(((after - weight) - delta).double().square().sum())
                squared_delta += float(delta.double().square().sum())
                weight = after
                left.discard(name)
            merged[name] = weight.contiguous()
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    if left:
        raise ModelError(f"The adapter changes {sorted(left)[0]}, which the base does not have.")
    _copy_small_files(base, folder)
    error = math.sqrt(squared_error / squared_delta) if squared_delta else 0.0
    return MergeReport(changed_tensors=len(deltas), relative_delta_error=error)


def _copy_small_files(base: Path, folder: Path) -> None:
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors" and path.name != "manifest.json" and path.is_file():
            shutil.copyfile(path, folder / path.name)
            (folder / path.name).chmod(0o644)


def cast_weights(folder: Path, dtype: DType) -> None:
    """Cast every floating-point weight of a model folder, file by file; its config says so."""
    import torch
    from safetensors.torch import save_file

    target = getattr(torch, dtype)
    for path, tensors in shards(folder):
        cast = {
            name: tensor.to(target) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        temporary = temporary_path(path)
        save_file(cast, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    config_path = folder / "config.json"
    config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = dtype
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def dequantised_weights(base: Path) -> "dict[str, Tensor]":
    """The base's linear weights after NF4 and back, float32, by tensor name: the base that a QLoRA
    adapter was trained on."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    model = load_model(base, quantization="nf4")
    return {
        f"{name}.weight": dequantize_4bit(module.weight.data, module.weight.quant_state)
        .float()
        .cpu()
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }
