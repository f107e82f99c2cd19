"""The two files of an adapter, always a plain LoRA for the base as it is stored."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_section import LoraSection
from luthier.models.adapter_start import ADAPTER_NAME, lora_layers, remembered_start
from luthier.store.files import temporary_path, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."


def save_adapter(
    model: "PreTrainedModel", folder: Path, base_name: str, *, adapter_name: str = ADAPTER_NAME
) -> None:
    """Write PEFT's two files, the same bytes for the same adapter: lists sorted, the base by name
    and not by this machine's path, no generated model card.

    PiSSA and OLoRA train W0 - s B0 A0 + s B A. On the stored base W0 that is the update
    s (B A - B0 A0) = [s B | -s B0] [A ; A0]: a LoRA of rank 2 r and scale 1 (the formula of peft
    0.21 `tuners/lora/model.py` subtract_mutated_init, with the scale inside B, so that it also
    holds for rank-stabilised LoRA with rank patterns). In a base of 16 bits the stored W0 and the
    trained one differ by the rounding of W0 - s B0 A0, which no low rank can undo.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # "auto" would ask a hub about the base's name; trained embeddings are saved in any case.
    state = get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    config = _config(model, base_name, adapter_name)
    start = remembered_start(model)
    if start is not None:
        _relative_to_stored_base(model, state, config, start)
    # Tied matrices are one piece of memory under two names, which safetensors refuses.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    weights = folder / ADAPTER_WEIGHTS
    temporary = temporary_path(weights)
    save_file(dict(sorted(tensors.items())), temporary, metadata={"format": "pt"})
    temporary.replace(weights)
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_lora_section(folder: Path) -> LoraSection:
    """The shape of a saved adapter.

    Raises:
        ModelError: it is no LoRA of ours.
    """
    path = folder / ADAPTER_CONFIG
    try:
        found = json.loads(path.read_bytes())
        return LoraSection(
            r=found["r"],
            alpha=found["lora_alpha"],
            dropout=found["lora_dropout"],
            target_modules=found["target_modules"],
            rank_pattern=found["rank_pattern"],
            alpha_pattern=found["alpha_pattern"],
            use_rslora=found["use_rslora"],
            use_dora=found["use_dora"],
            modules_to_save=found["modules_to_save"] or [],
            trainable_token_indices=found.get("trainable_token_indices"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an adapter that Luthier can go on with: {error}") from error


def _config(model: "PreTrainedModel", base_name: str, adapter_name: str) -> dict[str, Any]:
    found: dict[str, Any] = model.peft_config[adapter_name].to_dict()
    # How it started says nothing about what was saved, and servers refuse some starts by name.
    changes = {
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "init_lora_weights": True,
        "eva_config": None,
        "loftq_config": {},
    }
    return {name: _sorted(value) for name, value in (found | changes).items()}


def _sorted(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if hasattr(value, "value") else value


def _relative_to_stored_base(
    model: "PreTrainedModel",
    state: "dict[str, Tensor]",
    config: dict[str, Any],
    start: "dict[str, tuple[Tensor, Tensor]]",
) -> None:
    import torch

    for name, layer in lora_layers(model):
        a0, b0 = start[name]
        a_name, b_name = (f"{PEFT_PREFIX}{name}.lora_{which}.weight" for which in "AB")
        a, b = state[a_name].float().cpu(), state[b_name].float().cpu()
        scale = layer.scaling[ADAPTER_NAME]
        state[a_name] = torch.cat([a, a0], dim=0)
        state[b_name] = torch.cat([scale * b, -scale * b0], dim=1)
    ranks = {pattern: 2 * rank for pattern, rank in config["rank_pattern"].items()}
    config |= {
        "r": 2 * config["r"],
        "lora_alpha": 2 * config["r"],
        "use_rslora": False,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
    }
