"""Merging what was trained into a base's weights, file by file, in float32.

W' = W + scale * B @ A, with scale = alpha / r (arXiv 2106.09685, section 4.1) or alpha / sqrt(r)
for rank-stabilised LoRA (arXiv 2312.03732), as PEFT applies it (peft 0.21 `tuners/lora/layer.py`).
DoRA (arXiv 2402.09353, equation 5): W' = m * (W + scale * B @ A) / ||W + scale * B @ A||, with one
norm and magnitude for each output (peft 0.21 `tuners/lora/dora.py`; for an embedding, for each of
its dimensions). Modules trained whole and token embeddings replace the base's.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_files import PEFT_PREFIX
from luthier.models.adapter_targets import pattern_for
from luthier.models.loading import DType, is_whole_model, load_model
from luthier.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.models.quantization import Quantization, dequantised, quantised_modules
from luthier.models.weights import copy_small_files, shards, weight_files
from luthier.store.files import temporary_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Adapter features whose merge is another formula than those above.
_REFUSED = (
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_LORA_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class MergeReport:
    """What merging did: tensors changed, and the error of the applied update relative to it."""

    changed_tensors: int
    relative_delta_error: float


@dataclass(frozen=True)
class Update:
    """How an adapter changes one tensor of the base: a low-rank update, or other values."""

    a: "Tensor | None" = None  # (r, in); of an embedding (r, tokens)
    b: "Tensor | None" = None  # (out, r); of an embedding (dimensions, r)
    scale: float = 1.0
    magnitude: "Tensor | None" = None  # (out,); of an embedding (dimensions,)
    is_embedding: bool = False
    values: "Tensor | None" = None
    rows: "Tensor | None" = None  # the rows that `values` replace; None: all

    def delta(self, weight: "Tensor") -> "Tensor":
        """What to add to a float32 weight."""
        import torch

        if self.values is not None:
            replaced = self.values.float()
            if self.rows is not None:
                replaced = weight.index_copy(0, self.rows, replaced)
            return replaced - weight
        assert self.a is not None
        assert self.b is not None
        delta: Tensor = self.scale * (self.b.float() @ self.a.float())
        delta = delta.T if self.is_embedding else delta
        if self.magnitude is None:
            return delta
        along = 0 if self.is_embedding else 1
        norm = torch.linalg.norm(weight + delta, dim=along, keepdim=True)
        factor: Tensor = self.magnitude.float().unsqueeze(along) / norm
        return (factor - 1) * weight + factor * delta


def adapter_updates(adapter: Path) -> dict[str, Update]:
    """What the adapter changes, by name of the base's tensor.

    Raises:
        ModelError: the adapter has something that this merge does not do.
    """
    from safetensors.torch import load_file

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    _refuse(adapter, config)
    lora: dict[str, dict[str, Tensor]] = {}
    updates: dict[str, Update] = {}
    for key, tensor in load_file(adapter / ADAPTER_WEIGHTS).items():
        name = key.removeprefix(PEFT_PREFIX)
        part = next((part for part in _LORA_PARTS if name.endswith(f".{part}")), None)
        if part is not None:
            lora.setdefault(name.removesuffix(f".{part}"), {})[_LORA_PARTS[part]] = tensor
            if part == "lora_embedding_A":
                lora[name.removesuffix(f".{part}")]["is_embedding"] = tensor
        elif name.endswith(_TOKEN_ROWS):
            module = name.removesuffix(_TOKEN_ROWS)
            updates[f"{module}.weight"] = Update(values=tensor, rows=_token_ids(config, module))
        elif _is_trained_whole(config, name):
            updates[name] = Update(values=tensor)
        else:
            raise ModelError(f"{adapter}: it holds {key}, which is no LoRA matrix; cannot merge.")
    for module, parts in lora.items():
        updates[f"{module}.weight"] = _low_rank(adapter, config, module, parts)
    return updates


def _refuse(adapter: Path, config: "Mapping[str, Any]") -> None:
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise ModelError(f"{adapter}: cannot merge an adapter with {', '.join(refused)}.")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"{adapter}: it was started by {start}, which changes the base, and was not converted "
            "when it was saved: it does not fit the stored base. Save it as a plain LoRA (PEFT: "
            "path_initial_model_for_weight_conversion)."
        )


def _low_rank(
    adapter: Path, config: "Mapping[str, Any]", module: str, parts: "dict[str, Tensor]"
) -> Update:
    if "a" not in parts or "b" not in parts:
        raise ModelError(f"{adapter}: {module} has one of its two LoRA matrices; cannot merge.")
    rank = parts["a"].shape[0]
    patterns = config.get("alpha_pattern") or {}
    pattern = pattern_for(patterns, module)
    alpha = config["lora_alpha"] if pattern is None else patterns[pattern]
    return Update(
        a=parts["a"],
        b=parts["b"],
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        magnitude=parts.get("magnitude"),
        is_embedding="is_embedding" in parts,
    )


def _is_trained_whole(config: "Mapping[str, Any]", name: str) -> bool:
    """The tied head is in the file beside the embeddings; no name in the config means it."""
    wholes = [*(config.get("modules_to_save") or [])]
    if config.get("ensure_weight_tying"):
        wholes.append("lm_head")
    return any(f".{whole}." in f".{name}" for whole in wholes)


def _token_ids(config: "Mapping[str, Any]", module: str) -> "Tensor":
    import torch

    wanted = config["trainable_token_indices"]
    if isinstance(wanted, dict):
        wanted = next(ids for name, ids in wanted.items() if f".{module}".endswith(f".{name}"))
    return torch.tensor(wanted)


def merge(
    base: Path, adapter: Path, folder: Path, replaced: "Mapping[str, Tensor] | None" = None
) -> MergeReport:
    """Write base + adapter to `folder` in float32, with the base's config and tokenizer files.

    Args:
        base: model folder; one weight file at a time is in memory.
        adapter: PEFT folder; or a whole model, which is copied.
        folder: where to write; existing files of the same names are replaced.
        replaced: base tensors to take instead of the stored ones (a dequantised base).

    Raises:
        ModelError: the adapter changes a tensor that the base does not have.
    """
    from safetensors.torch import save_file

    if is_whole_model(adapter):
        return _copy_whole(base, adapter, folder)
    updates = _without_tied_heads(base, adapter_updates(adapter))
    left, squared_error, squared_delta = set(updates), 0.0, 0.0
    for path, tensors in shards(base):
        merged: dict[str, Tensor] = {}
        for name, stored in tensors.items():
            weight = (replaced or {}).get(name, stored).float()
            if name in updates:
                delta = updates[name].delta(weight)
                after = weight + delta
                squared_error += float(((after - weight) - delta).double().square().sum())
                squared_delta += float(delta.double().square().sum())
                weight = after
                left.discard(name)
            merged[name] = weight.contiguous()
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    if left:
        raise ModelError(f"The adapter changes {sorted(left)[0]}, which the base does not have.")
    copy_small_files(base, folder)
    error = math.sqrt(squared_error / squared_delta) if squared_delta else 0.0
    return MergeReport(changed_tensors=len(updates), relative_delta_error=error)


def _without_tied_heads(base: Path, updates: dict[str, Update]) -> dict[str, Update]:
    """Leave out a tensor that the base ties to another and that was trained tied: PEFT stores it
    under both names, and it is the same values."""
    import torch

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if not config.get("tie_word_embeddings"):
        return updates
    head, kept = updates.get("lm_head.weight"), dict(updates)
    if head is None or head.values is None:
        return updates
    for name, update in updates.items():
        is_table = name.endswith("embed_tokens.weight") and update.rows is None
        if is_table and update.values is not None and torch.equal(update.values, head.values):
            del kept["lm_head.weight"]
    return kept


def _copy_whole(base: Path, model: Path, folder: Path) -> MergeReport:
    import torch
    from safetensors import safe_open

    stored: dict[str, Any] = {}
    for path in weight_files(base):
        weights: Any = safe_open(path, framework="pt")
        stored |= dict.fromkeys(weights.keys(), weights)
    changed = 0
    for path, tensors in shards(model):
        changed += sum(
            name not in stored or not torch.equal(stored[name].get_tensor(name).float(), tensor)
            for name, tensor in tensors.items()
        )
        shutil.copyfile(path, folder / path.name)
        (folder / path.name).chmod(0o644)
    copy_small_files(model, folder)
    return MergeReport(changed_tensors=changed, relative_delta_error=0.0)


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


def dequantised_weights(base: Path, quantization: Quantization = "nf4") -> "dict[str, Tensor]":
    """The base's linear weights after quantisation and back, float32 on the CPU, by tensor name:
    the base that a QLoRA adapter was trained on.

    With int8 that base also rounds what goes into each layer (LLM.int8(), arXiv 2208.07339), which
    no weights can imitate: they are near it, not equal.
    """
    model = load_model(base, quantization=quantization)
    return {
        f"{name}.weight": dequantised(module).cpu() for name, module in quantised_modules(model)
    }
