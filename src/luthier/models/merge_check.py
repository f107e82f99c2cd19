"""F27: a merged folder against base + adapter, after a fresh load in another process.

What is merged in float32 must give the logits of base + adapter. What was cast to 16 bits must
give those of PEFT's own merge with each weight rounded to that type, and PEFT's merge before the
rounding those of base + adapter: two comparisons as strict as the first, and no tolerance for
rounding that a wrong merge could hide in.
"""

import gc
import math
import warnings
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
from luthier.models.sources import TOKENIZER_FILES
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Relative to the largest logit. Rounding in float32 gives up to 5e-6 on SmolLM2 (2e-4 absolute on
# logits near 45), weights cast to float16 some 1e-3, a forgotten or doubled update far more.
MAX_RELATIVE_DIFFERENCE = 5e-5
# Share of what the adapter moves logits by. Measured on SmolLM2 in bfloat16 with an adapter scaled
# down (2026-12): 0.01 of its strength as trained, 0.06 at a quarter of it, 0.25 at a tenth, where
# the merged model is 15 % of the adapter's KL divergence away from it, 0.63 at a twentieth. The
# error of the weights does not say it: from a float32 base it was 1.5 where this was 0.04.
MAX_ROUNDING_SHARE = 0.25
PROBE_ROWS = 16
# A row's logits are 600 kB a position at a vocabulary of 150,000.
PROBE_POSITIONS = 32


@dataclass(frozen=True)
class Merged:
    """A merged folder and what it was made of.

    `quantization` is that of the base that `adapter` was trained on, where the merged base is that
    base decoded; `decoded` are then its weights. Both None: the base as it is stored.
    `trained_dtype` is what it was trained in, to which quantised weights decode.
    """

    folder: Path
    base: Path
    adapter: Path
    dtype: DType
    quantization: Quantization | None = None
    decoded: "Mapping[str, Tensor] | None" = None
    trained_dtype: DType = "float32"


@dataclass(frozen=True)
class ExpectedLogits:
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
    expected = expected_logits(merged, probes, device)
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
        rounded = max_logit_difference(expected.adapted, found)
        metrics["peft_max_abs_logit_difference"] = expected.chain
        metrics["cast_max_abs_logit_difference"] = rounded
        moved = max_logit_difference(expected.base, expected.adapted)
        gates.append(_rounding_gate(rounded, moved, merged.dtype))
    return gates, metrics


def _rounding_gate(rounded: float, moved: float, dtype: DType) -> Gate:
    return check(
        "merge-rounding",
        rounded / moved if moved else math.nan,
        "<=",
        MAX_ROUNDING_SHARE,
        f"how far rounding to {dtype} moves logits, over how far the adapter does; where it is "
        "too far, set merge.dtype: float32",
    )


def tokenizer_gate(folder: Path, base: Path) -> Gate:
    """Whether a merged folder has the base's tokenizer, byte for byte (F07): logits of token ids
    cannot show another one."""
    names = {path.name for one in (folder, base) for path in one.iterdir()} & set(TOKENIZER_FILES)
    other = [name for name in sorted(names) if _content(folder / name) != _content(base / name)]
    return check(
        "merge-tokenizer",
        len(other),
        "==",
        0,
        f"files that are not the base's: {', '.join(other)}" if other else f"{len(names)} files",
    )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _worse(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def expected_logits(
    merged: Merged, probes: Sequence[Sequence[int]], device: str
) -> ExpectedLogits:
    """What base + adapter give, and what the merged folder must; nothing of it is read."""
    is_whole = is_whole_model(merged.adapter)
    if is_whole:
        base = _logits(load_model(merged.base, device=device), probes)
    model = _trained(merged, device)
    adapted = _logits(model, probes)
    if not is_whole:
        with model.disable_adapter():
            base = _logits(model, probes)
    if merged.dtype == "float32":
        return ExpectedLogits(adapted, base, adapted, 0.0)
    if _computes_quantised(merged):
        del model
        _free_memory()
        model = _decoded(merged, device)
    if not is_whole:
        model = _merged_by_peft(model)
    chain = max_logit_difference(adapted, _logits(model, probes))
    _round_weights(model, merged.dtype)
    return ExpectedLogits(adapted, base, _logits(model, probes), chain)


def _logits(model: "PreTrainedModel", probes: Sequence[Sequence[int]]) -> "list[Tensor]":
    return probe_logits(model, probes, most_positions=PROBE_POSITIONS)


def _computes_quantised(merged: Merged) -> bool:
    """Whether base + adapter is computed with the quantised base itself.

    int8 rounds activations, and so does a model that was trained in 16 bits: then one with the
    same weights, in float32, is compared.
    """
    return (
        merged.quantization is not None
        and merged.trained_dtype == "float32"
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


def _merged_by_peft(model: Any) -> "PreTrainedModel":
    """PEFT's own merge, in place, with a matrix of its own for every module.

    PEFT 0.21 adds a LoRA on one of two tied modules to that one's output alone, and merges it into
    the matrix of both (peft issue 2777).
    """
    _untie(model)
    with warnings.catch_warnings():
        # Both are about what was untied here.
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True` and the tied")
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _untie(model: "nn.Module") -> None:
    import torch

    seen = set[int]()
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if id(parameter) in seen:
                own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
                setattr(module, name, own)
            seen.add(id(parameter))


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
