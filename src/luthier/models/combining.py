"""Several adapters on one base, made into one by PEFT's own weighted sums.

PEFT 0.21 `tuners/lora/model.py` add_weighted_adapter does the arithmetic, on a model whose base
weights are empty: it needs their shapes alone. `cat` is the weighted sum of the updates, exactly.
`linear` adds A's and B's apart, each times the root of weight x scale, so that every A meets every
B as well. ties (arXiv 2306.01708), dare_linear and dare_ties (arXiv 2311.03099) and
magnitude_prune drop a part of the entries of A and of B before.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import ModelError
from luthier.models.adapter_files import ADAPTER_CONFIG, save_adapter
from luthier.models.libraries import quick_imports, quiet_libraries
from luthier.models.loading import is_whole_model
from luthier.models.skeleton import skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Combination = Literal["cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
NEEDS_DENSITY: tuple[Combination, ...] = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
_COMBINED = "combined"
# What an adapter may have beside plain LoRA matrices, of which there is no weighted sum.
_REFUSED = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
    "rank_pattern",
    "target_parameters",
    "lora_bias",
    "layer_replication",
    "fan_in_fan_out",
)


@dataclass(frozen=True)
class Weighted:
    """An adapter's folder, how messages call it, and its weight in the sum."""

    folder: Path
    name: str
    weight: float


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined; `density` is the share of entries kept, `seed` DARE's."""

    combination: Combination = "cat"
    density: float | None = None
    seed: int = 0


def combine(base: Path, adapters: Sequence[Weighted], recipe: Recipe, folder: Path) -> None:
    """Write the adapter that several make together to `folder`, as PEFT's two files.

    Args:
        base: the model folder that all are for; its config is read, and no weights.
        adapters: one or more; the order matters to DARE's random numbers alone.
        recipe: the way.
        folder: must exist.

    Raises:
        ModelError: one of them is not a plain LoRA, their ranks do not fit the way, or the base
            has not the modules of one.
    """
    import torch

    configs = [_plain_config(adapter) for adapter in adapters]
    if recipe.combination != "cat":
        _refuse_other_ranks(adapters, configs, recipe)
    names = [f"adapter-{place}" for place in range(1, len(adapters) + 1)]
    with torch.random.fork_rng(devices=[]):
        model = _hollow(base, names, adapters)
        torch.manual_seed(recipe.seed)
        model.add_weighted_adapter(
            names,
            [adapter.weight for adapter in adapters],
            _COMBINED,
            combination_type=recipe.combination,
            density=recipe.density,
        )
    base_name = str(configs[0]["base_model_name_or_path"])
    save_adapter(model, folder, base_name, adapter_name=_COMBINED)


def _plain_config(adapter: Weighted) -> dict[str, Any]:
    if is_whole_model(adapter.folder):
        raise ModelError(
            f"{adapter.name}: it is a whole model (sft.method: full) and no adapter, so it cannot "
            "be combined with others."
        )
    config: dict[str, Any] = json.loads(
        (adapter.folder / ADAPTER_CONFIG).read_text(encoding="utf-8")
    )
    found = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append("bias")
    if found:
        raise ModelError(
            f"{adapter.name}: it has {', '.join(found)}; only plain LoRA adapters with one rank "
            "can be combined, since a weighted sum is not defined for more."
        )
    return config


def _refuse_other_ranks(
    adapters: Sequence[Weighted], configs: Sequence[dict[str, Any]], recipe: Recipe
) -> None:
    if len({config["r"] for config in configs}) > 1:
        ranks = ", ".join(
            f"{adapter.name} {config['r']}"
            for adapter, config in zip(adapters, configs, strict=True)
        )
        raise ModelError(
            f"merge.combination: {recipe.combination} adds matrices of one rank, and these have "
            f"{ranks}. Take combination: cat, which is exact for any ranks."
        )


def _hollow(base: Path, names: Sequence[str], adapters: Sequence[Weighted]) -> Any:
    """The adapters, on a model of the base's shape without weights."""
    with quick_imports():
        quiet_libraries()
        from peft import get_peft_model

    model: Any = _without_weights(base)
    for place, (name, adapter) in enumerate(zip(names, adapters, strict=True)):
        config = _with_plain_scale(adapter.folder)
        try:
            if place == 0:
                model = get_peft_model(
                    model, config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                model.add_adapter(name, config, autocast_adapter_dtype=False)
            loaded = model.load_adapter(
                str(adapter.folder), name, torch_device="cpu", autocast_adapter_dtype=False
            )
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{adapter.name}: it does not fit the base: {error}") from error
        missing = [key for key in loaded.missing_keys if f".{name}." in key]
        if missing:
            raise ModelError(f"{adapter.name}: it lacks {missing[0]}, which its config names.")
    return model


def _with_plain_scale(folder: Path) -> Any:
    """The adapter's config, its scale the same and without `use_rslora`.

    PEFT 0.21 keeps that of the first adapter and sets alpha to the rank, which makes the sum
    sqrt(rank) times too large.
    """
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode, config.base_model_name_or_path = True, None
    if config.use_rslora:
        root = math.sqrt(config.r)
        config.lora_alpha *= root
        config.alpha_pattern = {
            name: alpha * root for name, alpha in (config.alpha_pattern or {}).items()
        }
        config.use_rslora = False
    return config


def _without_weights(base: Path) -> "PreTrainedModel":
    """A model whose weights are one zero each, seen as a matrix: PEFT reads shapes and devices."""
    import torch

    model = skeleton(base)
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            zeros = torch.zeros(()).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return model
