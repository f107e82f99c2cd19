"""LoRA adapters (arXiv 2106.09685): attaching them to a model."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_adapter
from luthier.models.adapter_learning import (
    keep_trainable_float32,
    moved_share,
    output_matrices,
    parameter_groups,
    trainable_dtypes,
)
from luthier.models.adapter_section import CHANGES_BASE, LoraSection, check_method
from luthier.models.adapter_start import remember_start, start_eva, start_loftq
from luthier.models.adapter_targets import find_targets
from luthier.models.quantization import quantised_modules

if TYPE_CHECKING:
    import datasets
    from torch import dtype, nn
    from transformers import PreTrainedModel

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "LoraSection",
    "attach",
    "check_method",
    "convert_at_whole_modules",
    "keep_trainable_float32",
    "moved_share",
    "output_matrices",
    "parameter_groups",
    "save_adapter",
    "trainable_dtypes",
]


def attach(
    model: "PreTrainedModel",
    section: LoraSection,
    seed: int,
    *,
    rows: "datasets.Dataset | None" = None,
    base_folder: Path | None = None,
) -> "PreTrainedModel":
    """A PEFT model with a fresh float32 adapter, the same for the same seed, model and rows.

    Args:
        model: the base; PiSSA and OLoRA change its weights.
        section: the adapter's shape and start.
        seed: of every random number drawn.
        rows: training rows with `input_ids`, which EVA samples.
        base_folder: the base's stored weights, which LoftQ compares with the quantised ones.

    Raises:
        ModelError: a name or pattern in the section matches nothing in this model, or the model
            cannot be trained so.
    """
    import torch
    from peft import get_peft_model

    try:
        check_method(section, quantized=next(quantised_modules(model), None) is not None)
    except ValueError as error:
        raise ModelError(f"sft.{error}") from error
    base_dtype = model.dtype
    targets = find_targets(model, section)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # Of PEFT's own conversion of PiSSA, where ours holds; and of the memory EVA takes.
            warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA with rank_pattern")
            warnings.filterwarnings("ignore", "lora with eva initialization used with low_cpu_mem")
            adapted = get_peft_model(
                model, _config(section, targets.arguments, targets.ties_embeddings)
            )
    except ValueError as error:
        raise ModelError(f"sft.lora: {error}") from error
    if section.init_lora_weights in CHANGES_BASE:
        keep_trainable_float32(adapted)
        remember_start(adapted)
    elif section.init_lora_weights == "eva":
        assert rows is not None, "EVA looks at training rows"
        start_eva(adapted, rows, seed)
    elif section.init_lora_weights == "loftq":
        assert base_folder is not None, "LoftQ looks at the base's stored weights"
        start_loftq(adapted, base_folder)
    keep_trainable_float32(adapted)
    convert_at_whole_modules(adapted, base_dtype)
    return adapted


def _config(section: LoraSection, selection: dict[str, Any], ties_embeddings: bool) -> Any:
    from peft import EvaConfig, LoraConfig

    start: Any
    match section.init_lora_weights:
        # LoftQ's own start wants a GPU and an unquantised layer: ours comes after.
        case "default" | "loftq":
            start = True
        case "pissa" if section.pissa_niter is not None:
            start = f"pissa_niter_{section.pissa_niter}"
        case other:
            start = other
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init_lora_weights=start,
        eva_config=EvaConfig() if start == "eva" else None,
        ensure_weight_tying=ties_embeddings,
        **selection,
    )


def convert_at_whole_modules(model: "nn.Module", base_dtype: "dtype") -> None:
    """Let float32 modules trained whole stand in a base of another dtype: what goes in is cast to
    theirs, what comes out to the base's (LoRA layers do so by themselves)."""
    import torch
    from peft.utils.other import ModulesToSaveWrapper

    if base_dtype == torch.float32:
        return

    def enter(_: "nn.Module", inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.float() if torch.is_floating_point(one) else one for one in inputs)

    def leave(_: "nn.Module", __: tuple[Any, ...], output: Any) -> Any:
        return output.to(base_dtype)

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save["default"]
            trained.register_forward_pre_hook(enter)
            trained.register_forward_hook(leave)
