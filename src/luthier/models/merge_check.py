"""F27: a merged folder against base + adapter, after a fresh load in another process.

What is merged in float32 must give the logits of base + adapter. What was cast to 16 bits must
give those of PEFT's own merge with each weight rounded to that type, and PEFT's merge before the
rounding those of base + adapter: two comparisons as strict as the first, and no tolerance for
rounding that a wrong merge could hide in.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.gates import Gate, check
from luthier.models.fresh import fresh_logits
from luthier.models.loading import DType, Quantization, is_whole_model, load_model
from luthier.models.parity import (
    check_device,
    largest_logit,
    max_logit_difference,
    probe_logits,
)
from luthier.models.quantization import quantization_section
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Relative to the largest logit. Rounding in float32 gives up to 5e-6 on SmolLM2 (2e-4 absolute on
# logits near 45), weights cast to float16 some 1e-3, a forgotten or doubled update far more.
MAX_RELATIVE_DIFFERENCE = 5e-5
PROBE_ROWS = 16
# A row's logits are 600 kB a position at a vocabulary of 150,000.
PROBE_POSITIONS = 32


@dataclass(frozen=True)
class Merged:
    """A merged folder and what it was made of.

    `quantization` is that of the base that `adapter` was trained on, where the merged base is that
    base decoded; `decoded` are then its weights. Both None: the base as it is stored.
    """

    folder: Path
    base: Path
    adapter: Path
    dtype: DType
    quantization: Quantization | None = None
    decoded: "Mapping[str, Tensor] | None" = None


@dataclass(frozen=True)
class _Expected:
    """Logits of base + adapter, of the base, and of what the merged folder must be.

    `chain` is the largest difference between base + adapter and PEFT's merge before rounding.
    """

    adapted: "list[Tensor]"
    base: "list[Tensor]"
    merged: "list[Tensor]"
    chain: float


def check_merge(
    merged: Merged, rows: Sequence[Sequence[int]], workspace: Workspace
) -> tuple[list[Gate], dict[str, Any]]:
    """The gates `merge-parity` and `merge-changed`, and the numbers behind them.

    One float32 model is in memory at a time.

    Args:
        merged: what to check.
        rows: token ids of held-out rows; `PROBE_ROWS` of them are used.
        workspace: see `fresh_logits`.

    Raises:
        ModelError: the merged folder does not load.
        InterruptedRunError: stopped on request.
    """
    probes, device = rows[:PROBE_ROWS], check_device(merged.base)
    expected = _expected(merged, probes, device)
    _free_memory()
    found = fresh_logits(
        merged.folder, probes, workspace, device=device, most_positions=PROBE_POSITIONS
    )
    difference = max_logit_difference(expected.merged, found)
    change = max_logit_difference(expected.base, found)
    scale = max(largest_logit(expected.adapted), 1.0)
    detail = (
        f"largest logit difference over the largest logit, {len(probes)} held-out rows, "
        f"{merged.dtype} weights, loaded in a new process"
    )
    reference = "" if merged.dtype == "float32" else "; PEFT's merge rounded as they are"
    worst = _worse(difference, expected.chain) / scale
    gates = [
        check("merge-parity", worst, "<=", MAX_RELATIVE_DIFFERENCE, detail + reference),
        check(
            "merge-changed", change / scale, ">", MAX_RELATIVE_DIFFERENCE, f"{detail}; to the base"
        ),
    ]
    metrics = {
        "max_abs_logit_difference": difference,
        "max_abs_logit_change": change,
        "largest_logit": scale,
    }
    if merged.dtype != "float32":
        metrics["peft_max_abs_logit_difference"] = expected.chain
        metrics["cast_max_abs_logit_difference"] = max_logit_difference(expected.adapted, found)
    return gates, metrics


def _worse(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return one + other if one != one or other != other else max(one, other)


def _expected(merged: Merged, probes: Sequence[Sequence[int]], device: str) -> _Expected:
    is_whole = is_whole_model(merged.adapter)
    if is_whole:
        base = _logits(load_model(merged.base, device=device), probes)
    model = _trained(merged, device)
    adapted = _logits(model, probes)
    if not is_whole:
        with model.disable_adapter():
            base = _logits(model, probes)
    if merged.dtype == "float32":
        return _Expected(adapted, base, adapted, 0.0)
    if _computes_quantised(merged):
        del model
        _free_memory()
        model = _decoded(merged, device)
    if not is_whole:
        with_adapter: Any = model
        model = with_adapter.merge_and_unload()
    chain = max_logit_difference(adapted, _logits(model, probes))
    _round_weights(model, merged.dtype)
    return _Expected(adapted, base, _logits(model, probes), chain)


def _logits(model: "PreTrainedModel", probes: Sequence[Sequence[int]]) -> "list[Tensor]":
    return probe_logits(model, probes, most_positions=PROBE_POSITIONS)


def _computes_quantised(merged: Merged) -> bool:
    """Whether base + adapter is computed with the quantised base itself.

    int8 rounds activations too, so a model with its weights is compared and not itself.
    """
    return (
        merged.quantization is not None
        and quantization_section(merged.quantization).type != "int8"
    )


def _trained(merged: Merged, device: str) -> "PreTrainedModel":
    """Base + adapter, as the merged model must be before it is rounded."""
    if _computes_quantised(merged):
        return load_model(
            merged.base, adapter=merged.adapter, quantization=merged.quantization, device=device
        )
    return _decoded(merged, device)


def _decoded(merged: Merged, device: str) -> "PreTrainedModel":
    """The base as it is stored, or with its quantised weights decoded, and the adapter."""
    model = load_model(merged.base, adapter=merged.adapter, device=device)
    if merged.decoded is not None:
        plain: Any = model.get_base_model()
        for name, weight in merged.decoded.items():
            module = plain.get_submodule(name.removesuffix(".weight"))
            getattr(module, "base_layer", module).weight.data.copy_(weight)
    return model


def _round_weights(model: "PreTrainedModel", dtype: DType) -> None:
    """Each weight to the nearest value of `dtype`, in float32 as before."""
    import torch

    target = getattr(torch, dtype)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(target))


def _free_memory() -> None:
    """Before another process loads a model on the same device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
