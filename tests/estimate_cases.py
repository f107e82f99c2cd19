"""What tests of the estimate share: real configs, and bytes that torch really keeps."""

import json
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from luthier.estimate.architecture import Architecture, read_architecture
from luthier.estimate.shape import TrainingShape
from luthier.training.loss import summed_loss
from luthier.training.packing import PackedCollator

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGS = Path(__file__).parent / "model_configs"
SMALL = {
    "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def real_config(name: str) -> dict[str, Any]:
    """A published config.json."""
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def real(name: str) -> Architecture:
    return read_architecture(real_config(name))


def small_config(name: str) -> dict[str, Any]:
    """A published config.json with small numbers in it."""
    return real_config(name) | SMALL


def build(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """The model that transformers makes of a config.json, random weights."""
    fields = {k: v for k, v in config.items() if k not in {"auto_map", "torch_dtype"}}
    made = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    return AutoModelForCausalLM.from_config(made, dtype=dtype)


def adapted(config: dict[str, Any], shape: TrainingShape) -> Any:
    """A small model as `shape` says: adapter, dtype, checkpointing, attention."""
    torch.manual_seed(3)
    model = build(config, getattr(torch, shape.dtype))
    if shape.attention == "eager":
        model.set_attn_implementation("eager")
    if shape.adapter is not None:
        adapter, target = shape.adapter, shape.adapter.target_modules
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=adapter.r,
                target_modules=target if isinstance(target, str) else list(target),
                exclude_modules=list(adapter.exclude_modules) or None,
                rank_pattern=dict(adapter.rank_pattern),
                lora_dropout=adapter.dropout,
                use_dora=adapter.use_dora,
                modules_to_save=list(adapter.modules_to_save) or None,
                layers_to_transform=list(adapter.layers_to_transform)
                if adapter.layers_to_transform
                else None,
            ),
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if shape.gradient_checkpointing:
        # transformers before 5.23 knows the old name only.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if shape.adapter is not None:
            model.enable_input_require_grads()
    return model.train()


def peak_of_step(model: Any, shape: TrainingShape) -> int:
    """Most bytes of tensors alive at once in one forward and backward, the model's own without."""
    ids = torch.randint(5, 900, (shape.rows, shape.tokens_per_row))
    ids[:, : shape.shared_prefix_tokens + 1] = ids[:1, : shape.shared_prefix_tokens + 1]
    labels = torch.full_like(ids, -100)
    labels[:, -shape.supervised_tokens_per_row :] = ids[:, -shape.supervised_tokens_per_row :]
    inputs = {"input_ids": ids, "labels": labels}
    if shape.masked:  # the pack of two rows, kept apart by a mask
        halves = zip(ids.reshape(2, -1).tolist(), labels.reshape(2, -1).tolist(), strict=True)
        rows = [{"input_ids": half, "labels": marks} for half, marks in halves]
        inputs = PackedCollator("block_mask")(rows)
    with living_tensors(model) as living:
        share = shape.shared_prefix_tokens > 0
        summed_loss(model, inputs, share_prefix=share, head="pairs").backward()
    return living.peak


@contextmanager
def living_tensors(model: Any) -> "Iterator[LivingTensors]":
    """Counts bytes of tensors that come alive within it."""
    living = LivingTensors()
    for tensor in (*model.parameters(), *model.buffers()):
        living.known.add(tensor.untyped_storage()._cdata)
    with living:
        yield living


class LivingTensors(TorchDispatchMode):
    """Adds every new storage, subtracts it when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size
