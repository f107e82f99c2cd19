"""What a quantised base decodes to, one weight at a time: the base that QLoRA trains on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.loading import DType, pick_device
from luthier.models.quantization import (
    Quantization,
    bitsandbytes_config,
    dequantised,
    quantised_modules,
)
from luthier.models.safetensors_stream import read_tensor
from luthier.models.skeleton import StoredModel, is_conv1d, refuse_quantised

if TYPE_CHECKING:
    from torch import Tensor


def dequantised_weights(
    base: Path, quantization: Quantization = "nf4", *, dtype: DType = "float32"
) -> "Mapping[str, Tensor]":
    """The base's linear weights after quantisation and back, float32 on the CPU, by tensor name.

    Each is quantised and decoded when it is asked for, by transformers' own operation and on the
    modules that transformers itself would replace: bit for bit what `load_model(base,
    quantization=..., dtype=...)` computes with. `dtype` counts: stored weights are cast to it
    before they are quantised, and decoded to it (transformers 5.23 `core_model_loading.py`).

    With int8 that base also rounds what goes into each layer (LLM.int8(), arXiv 2208.07339), which
    no weights can imitate: they are near it, not equal.

    Raises:
        ModelError: the base is quantised already, or lacks the weights of a layer.
    """
    refuse_quantised(base)
    return _Dequantised(base, quantization, dtype)


class _Dequantised(Mapping[str, "Tensor"]):
    def __init__(self, base: Path, quantization: Quantization, dtype: DType) -> None:
        import torch
        from transformers.quantizers import AutoHfQuantizer

        self._stored = StoredModel(base)
        self._dtype: torch.dtype = getattr(torch, dtype)
        config = bitsandbytes_config(quantization, dtype)
        self._quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
        self._quantizer.preprocess_model(model=self._stored.model, device_map={"": pick_device()})
        self._modules: dict[str, Any] = {
            f"{name}.weight": module for name, module in quantised_modules(self._stored.model)
        }

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __getitem__(self, name: str) -> "Tensor":
        module = self._modules[name]
        file_name = self._stored.file_name(name)
        if file_name is None:
            raise ModelError(f"{self._stored.folder}: it has no {name} to quantise.")
        weight = read_tensor(self._stored.tensors[file_name])
        weight = weight.to(pick_device(), self._dtype)
        empty = module.weight
        try:
            found = self._quantizer.get_quantize_ops().convert(
                {name: [weight]}, full_layer_name=name, model=self._stored.model
            )
            module.weight = found[name]
            decoded = dequantised(module).cpu()
        finally:
            module.weight = empty
            if hasattr(module, "state"):
                module.state.SCB = None
        return decoded.T.contiguous() if is_conv1d(module) else decoded
