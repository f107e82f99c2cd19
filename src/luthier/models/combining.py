"""Several adapters of one base as one, with weights, as PEFT's `add_weighted_adapter` defines it
(peft 0.21 `tuners/lora/model.py`, `utils/merge_utils.py`), without the base in memory.

`cat` is the exact sum of the weighted updates, with ranks added. The others work on the matrices A
and B apart, which keeps the rank, and are no exact sum: `linear` (task arithmetic, arXiv
2212.04089), `ties` (arXiv 2306.01708) keeps the largest values and the sign of the majority,
`dare_linear` and `dare_ties` (arXiv 2311.03099) drop values at random and make up for it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import ModelError
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX
from luthier.models.adapter_updates import LowRank, adapter_updates
from luthier.store.files import temporary_path, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

Combination = Literal["linear", "cat", "ties", "dare_linear", "dare_ties"]


def combine_adapters(
    weighted: Sequence[tuple[Path, float]],
    folder: Path,
    *,
    method: Combination = "linear",
    density: float = 0.5,
    seed: int = 0,
) -> None:
    """Write one plain LoRA that stands for several; `merge` and PEFT take it as any other.

    Args:
        weighted: adapter folders for the same base, and the weight of each (negative: taken away).
        folder: where to write PEFT's two files.
        method: how to combine them.
        density: share of values that ties and dare keep.
        seed: of what dare drops.

    Raises:
        ModelError: an adapter is no plain LoRA, ranks differ where they must not, or the density
            is no share.
    """
    import torch
    from safetensors.torch import save_file

    if not 0 < density < 1:
        raise ModelError(f"density: {density:g} is no share of values; give one between 0 and 1.")
    adapters = [(_low_ranks(path), weight) for path, weight in weighted]
    modules = sorted({module for updates, _ in adapters for module in updates})
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules:
            here = [(updates[module], weight) for updates, weight in adapters if module in updates]
            try:
                a, b = _cat(here) if method == "cat" else _apart(here, method, density)
            except RuntimeError as error:
                raise ModelError(
                    f"{module} has another rank or shape in one adapter than in another. "
                    "Ranks may differ with method cat only; the base must be the same."
                ) from error
            names = _names(here[0][0])
            ranks[module] = a.shape[0]
            for name, matrix in zip(names, (a, b), strict=True):
                tensors[f"{PEFT_PREFIX}{module}.{name}"] = matrix.contiguous()
    weights = folder / ADAPTER_WEIGHTS
    temporary = temporary_path(weights)
    save_file(dict(sorted(tensors.items())), temporary, metadata={"format": "pt"})
    temporary.replace(weights)
    config = _config(weighted[0][0], ranks)
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _low_ranks(adapter: Path) -> dict[str, LowRank]:
    """By module."""
    found: dict[str, LowRank] = {}
    for name, update in adapter_updates(adapter).items():
        if not isinstance(update, LowRank) or update.magnitude is not None:
            raise ModelError(
                f"{adapter}: {name} is not changed by a plain LoRA (it is trained whole, or by "
                "DoRA), and cannot be combined with other adapters. Merge it alone."
            )
        found[name.removesuffix(".weight")] = update
    return found


def _cat(here: Sequence[tuple[LowRank, float]]) -> "tuple[Tensor, Tensor]":
    import torch

    a = torch.cat([weight * update.scale * update.a for update, weight in here], dim=0)
    return a, torch.cat([update.b for update, _ in here], dim=1)


def _apart(
    here: Sequence[tuple[LowRank, float]], method: Combination, density: float
) -> "tuple[Tensor, Tensor]":
    import torch
    from peft.utils import merge_utils

    scales = [weight * update.scale for update, weight in here]
    roots = torch.tensor([math.sqrt(abs(scale)) for scale in scales])
    signs = torch.tensor([1.0 if scale >= 0 else -1.0 for scale in scales])

    def combined(matrices: "list[Tensor]", weights: "Tensor") -> "Tensor":
        function: Any = merge_utils.task_arithmetic
        options: tuple[float, ...] = ()
        if method != "linear":
            function, options = getattr(merge_utils, method), (density,)
        result: Tensor = function(matrices, weights, *options)
        return result

    a = combined([update.a for update, _ in here], roots * signs)
    return a, combined([update.b for update, _ in here], roots)


def _names(update: LowRank) -> tuple[str, str]:
    if update.is_transposed:
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def _config(adapter: Path, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first adapter's, for these modules, with alpha = rank: the scale is in the matrices."""
    found: dict[str, Any] = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank = max(ranks.values())
    others = {module: one for module, one in ranks.items() if one != rank}
    return found | {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
