"""LoRA adapters (arXiv 2106.09685): attaching, saving, and what they are made of."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.config import Field, Section
from luthier.errors import ModelError
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


class LoraSection(Section):
    """The adapter's shape, named as PEFT names it."""

    r: int = Field(16, gt=0, le=1024, description="rank of the update matrices")
    alpha: int = Field(32, gt=0, description="the update is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the A matrices, a share")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="all-linear, or names of the linear modules to adapt"
    )


def attach(model: "PreTrainedModel", section: LoraSection, seed: int) -> "PreTrainedModel":
    """A PEFT model with a fresh float32 adapter; A is random by `seed`, B is zero.

    Raises:
        ModelError: the model has no module of a name in `target_modules`.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"sft.lora.target_modules: {error}") from error
    keep_trainable_float32(adapted)
    return adapted


def keep_trainable_float32(model: "nn.Module") -> None:
    """Cast what is trained to float32, whatever a library made of it (FAILURES F14)."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable_dtypes(model: "nn.Module") -> dict[str, int]:
    """How many trainable elements have which dtype."""
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.requires_grad:
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)


def output_matrices(model: "nn.Module") -> "dict[str, Tensor]":
    """Every B matrix by name, copied to the CPU: zero at the start, moved by learning."""
    return {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if "lora_B" in name
    }


def moved_share(before: "dict[str, Tensor]", after: "dict[str, Tensor]") -> float:
    """Share of B elements that changed; 0 when any is NaN or infinite, or there is none."""
    import torch

    if not after or not all(bool(torch.isfinite(matrix).all()) for matrix in after.values()):
        return 0.0
    changed = sum(int((matrix != before[name]).sum()) for name, matrix in after.items())
    return changed / sum(matrix.numel() for matrix in after.values())


def save_adapter(model: "PreTrainedModel", folder: Path, base_name: str) -> None:
    """Write PEFT's two files, the same bytes for the same adapter: lists sorted, the base by name
    and not by this machine's path, no generated model card."""
    # "auto" would ask a hub about the base's name; linear modules alone are adapted.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
