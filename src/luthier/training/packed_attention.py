"""Attention that keeps packed rows apart, by what the machine has and the model needs.

B rows of a batch, H heads, T tokens, D numbers of a head.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from luthier.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

PackingWay = Literal["flash_attention", "varlen", "row_by_row", "block_mask"]
PACKING_WAYS: tuple[PackingWay, ...] = get_args(PackingWay)

VARLEN_NAME = "luthier_varlen"
ROW_BY_ROW_NAME = "luthier_row_by_row"
# torch's built-in flash kernels: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, torch 2.13
FLASH_MIN_CAPABILITY = (8, 0)
FLASH_MAX_HEAD_DIM = 256
# What transformers hands to attention functions and ours do not compute.
UNSUPPORTED_ARGUMENTS = ("sliding_window", "softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class PackingChoice:
    """How packed rows are kept apart, or None: they cannot be; and why, in a sentence's words."""

    way: PackingWay | None
    reason: str


def choose_packing_attention(
    device_type: str, config: "PretrainedConfig", *, dtype: str = "float32"
) -> PackingChoice:
    """The fastest way that isolates rows in every layer of such a model.

    Args:
        device_type: `cpu` or `cuda`.
        config: the model's.
        dtype: what attention computes in; flash kernels know bfloat16 and float16 only.
    """
    text = config.get_text_config()
    refusal = _refusal(text)
    if refusal:
        return PackingChoice(None, refusal)
    flash = device_type == "cuda" and dtype in {"bfloat16", "float16"}
    if flash and _flash_attention_name():
        return PackingChoice("flash_attention", "flash-attention is installed")
    special = _special_attention(text)
    if special:
        return PackingChoice("block_mask", f"{special} needs the model's own attention, masked")
    if flash and _varlen_runs(text):
        return PackingChoice("varlen", "torch's variable-length kernel runs on this GPU")
    where = "a CPU" if device_type == "cpu" else f"{dtype} here"
    return PackingChoice("row_by_row", f"no variable-length kernel for {where}")


def _refusal(text: "PretrainedConfig") -> str:
    """Why rows of such a model cannot be kept apart; empty when they can."""
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    unknown = layers - {"full_attention", "sliding_attention"}
    if unknown:
        return f"isolation is not shown for the model's layers of {', '.join(sorted(unknown))}"
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None):
        return "the model's attention is not causal"
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_theta", None)
    if not rotary or getattr(text, "alibi", False):
        return "the model's positions are not rotary, so they cannot restart with each row"
    return ""


def _special_attention(text: "PretrainedConfig") -> str:
    """What its attention does beyond causal softmax over a whole row; empty when nothing."""
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        return "sliding-window attention"
    if getattr(text, "sliding_window", None) and not getattr(text, "layer_types", None):
        return "sliding-window attention"
    if getattr(text, "attn_logit_softcapping", None):
        return "soft-capped attention"
    return ""


def _flash_attention_name() -> str:
    """What transformers calls the newest flash-attention installed; empty when none is."""
    from transformers.utils import import_utils

    for version in (3, 2):
        if getattr(import_utils, f"is_flash_attn_{version}_available")():
            return f"flash_attention_{version}"
    return ""


def _varlen_runs(text: "PretrainedConfig") -> bool:
    import torch

    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (
        torch.cuda.get_device_capability() >= FLASH_MIN_CAPABILITY
        and head_dim <= FLASH_MAX_HEAD_DIM
        and getattr(text, "v_head_dim", head_dim) == head_dim
        and not getattr(text, "attention_dropout", 0)
    )


def use_packing_attention(model: "nn.Module", way: PackingWay) -> None:
    """Make `model` compute attention that way; batches that are not packed stay right.

    Raises:
        ModelError: the model's code takes no attention function from outside.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if way == "block_mask":
        return
    base = _base_model(model)
    if not takes_attention_functions(model):
        raise ModelError(
            f"{type(base).__name__} cannot pack rows this way: its code chooses attention itself. "
            "Set packing: false."
        )
    for name, function in ((VARLEN_NAME, _varlen), (ROW_BY_ROW_NAME, _row_by_row)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
    names = {
        "flash_attention": _flash_attention_name(),
        "varlen": VARLEN_NAME,
        "row_by_row": ROW_BY_ROW_NAME,
    }
    base.set_attn_implementation(names[way])


def takes_attention_functions(model: "nn.Module") -> bool:
    """Whether the model's code calls the attention registered under a name, with all arguments."""
    base = _base_model(model)
    parameters = inspect.signature(base.forward).parameters.values()
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return takes_any and bool(base._can_set_attn_implementation())


def _base_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _row_by_row(
    module: "nn.Module",
    query_BHTD: "Tensor",
    key_BHTD: "Tensor",
    value_BHTD: "Tensor",
    attention_mask: "Tensor | None",
    **options: Any,
) -> "tuple[Tensor, None]":
    """Each row through sdpa's causal kernel by itself: isolated by construction, and no work for
    pairs of rows, which a mask over all T x T would do."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(query: "Tensor", key: "Tensor", value: "Tensor", mask: "Tensor | None") -> "Tensor":
        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return out

    lengths = options.pop("packed_lengths", None)
    if lengths is None:
        return attend(query_BHTD, key_BHTD, value_BHTD, attention_mask), None
    _refuse_unsupported(options)
    queries, keys, values = (
        torch.split(whole, lengths, 2) for whole in (query_BHTD, key_BHTD, value_BHTD)
    )
    rows = [
        attend(query, key, value, None)
        for query, key, value in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(rows, dim=1), None


def _varlen(
    module: "nn.Module",
    query_BHTD: "Tensor",
    key_BHTD: "Tensor",
    value_BHTD: "Tensor",
    attention_mask: "Tensor | None",
    **options: Any,
) -> "tuple[Tensor, None]":
    """All rows in one call of torch.nn.attention.varlen (torch 2.13), causal within each."""
    from torch.nn.attention import varlen
    from transformers.integrations.flash_attention import get_target_dtype
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts, longest = options.pop("cu_seq_lens_q", None), options.pop("max_length_q", None)
    if starts is None:
        whole: Tensor = sdpa_attention_forward(
            module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **options
        )[0]
        return whole, None
    _refuse_unsupported(options)
    # Norms that PEFT keeps in float32 give float32 queries, which the kernel does not know.
    dtype = get_target_dtype(query_BHTD, module) or query_BHTD.dtype
    query, key, value = (
        one[0].transpose(0, 1).to(dtype) for one in (query_BHTD, key_BHTD, value_BHTD)
    )
    settings: dict[str, Any] = {"scale": options.get("scaling"), "window_size": (-1, 0)}
    # torch 2.11 has no such argument: its kernels take fewer key heads as they come.
    if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        settings["enable_gqa"] = True
    out_THD = varlen.varlen_attn(query, key, value, starts, starts, longest, longest, **settings)
    return out_THD.unsqueeze(0), None  # type: ignore[union-attr]


def _refuse_unsupported(options: dict[str, Any]) -> None:
    """What would be computed wrongly in silence."""
    for name in UNSUPPORTED_ARGUMENTS:
        if options.get(name) is not None:
            raise ModelError(
                f"packing: this model's attention has {name}, which the packed attention does "
                "not compute. Set packing: false."
            )
