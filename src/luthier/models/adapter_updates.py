"""What a saved adapter changes in the base's tensors.

W' = W + scale * B @ A, with scale = alpha / r (arXiv 2106.09685, section 4.1) or alpha / sqrt(r)
for rank-stabilised LoRA (arXiv 2312.03732), as PEFT applies it (peft 0.21 `tuners/lora/layer.py`).
DoRA (arXiv 2402.09353, equation 5): W' = m * (W + scale * B @ A) / ||W + scale * B @ A||, with one
norm and magnitude for each output (peft 0.21 `tuners/lora/dora.py`; for an embedding, for each of
its dimensions). Embeddings, and GPT-2's Conv1D ("fan in, fan out"), are stored transposed. Modules
trained whole and token embeddings replace the base's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX
from luthier.models.adapter_targets import lora_scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

# Adapter features whose merge is another formula than those above.
_REFUSED = (
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
    "lora_B.bias": "bias",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
}
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class LowRank:
    """W + scale * B @ A, and for DoRA normed to `magnitude`; all float32."""

    a: "Tensor"  # (r, in)
    b: "Tensor"  # (out, r)
    scale: float
    magnitude: "Tensor | None" = None  # (out,)
    is_transposed: bool = False  # stored as (in, out)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the stored weights."""
        out, inner = self.b.shape[0], self.a.shape[1]
        return (inner, out) if self.is_transposed else (out, inner)

    @property
    def needs_norms(self) -> bool:
        """Whether the norms of all outputs must be known before the first row can be changed."""
        return self.magnitude is not None and self.is_transposed

    def norms(self, pieces: "Iterable[tuple[int, int, Tensor]]") -> "Tensor":
        """Norms (out,) of the changed weights stored transposed, from their float32 rows."""
        import torch

        squares = torch.zeros(self.b.shape[0], dtype=torch.float64)
        for start, stop, rows in pieces:
            squares += (rows + self._product(start, stop)).square().sum(dim=0)
        return squares.sqrt().float()

    def delta(self, start: int, rows: "Tensor", norms: "Tensor | None") -> "Tensor":
        """What to add to the float32 rows from `start` on."""
        import torch

        stop = start + rows.shape[0]
        delta = self._product(start, stop)
        if self.magnitude is None:
            return delta
        if norms is not None:
            factor = self.magnitude / norms
        else:
            norm = torch.linalg.norm(rows + delta, dim=1, keepdim=True)
            factor = self.magnitude[start:stop, None] / norm
        return (factor - 1) * rows + factor * delta

    def _product(self, start: int, stop: int) -> "Tensor":
        if self.is_transposed:
            return self.a[:, start:stop].T @ (self.scale * self.b.T)
        return (self.scale * self.b[start:stop]) @ self.a


@dataclass(frozen=True)
class Replaced:
    """Values instead of the base's: all, or those of some rows."""

    values: "Tensor"
    rows: "Tensor | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored weights, or of one of their rows."""
        return tuple(self.values.shape if self.rows is None else self.values.shape[1:])

    def after(self, start: int, rows: "Tensor") -> "Tensor":
        """The float32 rows from `start` on with the new values."""
        if self.rows is None:
            whole = self.values
            return (whole[start : start + rows.shape[0]] if rows.dim() else whole).float()
        stop = start + rows.shape[0]
        here = (self.rows >= start) & (self.rows < stop)
        return rows.index_copy(0, self.rows[here] - start, self.values[here].float())


@dataclass(frozen=True)
class Added:
    """Values that are added to the base's."""

    values: "Tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored values."""
        return tuple(self.values.shape)


Update = LowRank | Replaced | Added


def adapter_updates(adapter: Path, conv1d: "Iterable[str]" = ()) -> dict[str, Update]:
    """What the adapter changes, by the model's names of its tensors.

    Args:
        adapter: PEFT folder.
        conv1d: names of the base's modules whose weights are stored as (in, out).

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
        elif name.endswith(_TOKEN_ROWS):
            module = name.removesuffix(_TOKEN_ROWS)
            updates[f"{module}.weight"] = Replaced(tensor, _token_ids(config, module))
        elif _is_trained_whole(config, name):
            updates[name] = Replaced(tensor)
        else:
            raise ModelError(f"{adapter}: it holds {key}, which is no LoRA matrix; cannot merge.")
    transposed = frozenset(conv1d)
    for module, parts in lora.items():
        scale = _scale(adapter, config, module, parts)
        updates[f"{module}.weight"] = _low_rank(parts, scale, is_conv1d=module in transposed)
        if "bias" in parts:
            updates[f"{module}.bias"] = Added(scale * parts["bias"].float())
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


def _scale(
    adapter: Path, config: "Mapping[str, Any]", module: str, parts: "Mapping[str, Tensor]"
) -> float:
    a = parts.get("a", parts.get("embedding_a"))
    if a is None or not ("b" in parts or "embedding_b" in parts):
        raise ModelError(f"{adapter}: {module} has one of its two LoRA matrices; cannot merge.")
    return lora_scale(config, module, a.shape[0])


def _low_rank(parts: "Mapping[str, Tensor]", scale: float, *, is_conv1d: bool) -> LowRank:
    is_embedding = "embedding_a" in parts
    a, b = (parts[f"embedding_{one}" if is_embedding else one].float() for one in "ab")
    magnitude = parts.get("magnitude")
    return LowRank(
        a=a,
        b=b,
        scale=scale,
        magnitude=None if magnitude is None else magnitude.float(),
        is_transposed=is_embedding or is_conv1d,
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
