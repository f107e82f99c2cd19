"""What is trained: its numerics, its learning rates, and whether it moved."""

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

_ROWS = "rows of "  # marks a lookup table, one row a token, among the tensors that are compared
# Of a tensor that is trained whole; evenly spread. A share of 0.9 is then exact to 0.5 % (95 %).
_SAMPLED_ELEMENTS = 16_384


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
    """What learning must move (FAILURES F15), copied to the CPU in float32, to be compared later.

    Of an adapter: every B matrix (zero at the start, for PiSSA, OLoRA and LoftQ not), DoRA's
    magnitudes and modules trained whole. Of full fine-tuning: every weight. Of tensors trained
    whole an even sample. A matrices are left out: with B at zero they get no gradient at first.
    """
    tables = _lookup_tables(model)
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or "lora_A" in name or "lora_embedding_B" in name:
            continue
        values = parameter.detach()
        if name in tables:
            values = values.T if "lora_embedding_A" in name else values
            step = max(1, values.numel() // (_SAMPLED_ELEMENTS * 16))
            # All tokens, some columns: which tokens the rows teach is not known here.
            found[_ROWS + name] = values[:, ::step].float().cpu().clone()
        elif "lora_" in name:
            found[name] = values.float().cpu().clone()
        else:
            step = max(1, values.numel() // _SAMPLED_ELEMENTS)
            found[name] = values.flatten()[::step].float().cpu().clone()
    return found


def _lookup_tables(model: "nn.Module") -> set[str]:
    """Names of trained embeddings, unless they are the output head too, where every row moves."""
    from torch import nn

    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    parts = ("lora_embedding_A", "trainable_tokens_delta")
    return names | {n for n, _ in model.named_parameters() if any(part in n for part in parts)}


def moved_share(before: "dict[str, Tensor]", after: "dict[str, Tensor]") -> float:
    """Share of elements that changed; 0 when any is NaN or infinite, or there is none.

    Of lookup tables only rows that changed count, for a token that no training row has rightly
    stays as it is; a table without a changed row counts whole.
    """
    import torch

    if not after or not all(bool(torch.isfinite(tensor).all()) for tensor in after.values()):
        return 0.0
    changed, counted = 0, 0
    for name, tensor in after.items():
        differs = tensor != before[name]
        if name.startswith(_ROWS) and bool(differs.any()):
            differs = differs[differs.any(dim=1)]
        changed += int(differs.sum())
        counted += differs.numel()
    return changed / counted


def parameter_groups(
    model: "nn.Module",
    learning_rate: float,
    weight_decay: float,
    loraplus_lr_ratio: float | None,
) -> list[dict[str, Any]]:
    """The trainable parameters as optimizer groups, in the order of the model.

    LoRA+ (arXiv 2402.12354): B matrices learn `loraplus_lr_ratio` times faster than A. As peft
    0.21 `optimizers/loraplus.py`, vectors (DoRA's magnitudes, norms) go with B; unlike there,
    embeddings have the plain learning rate and not a second constant, 1e-6. Vectors, such as norms
    and biases, are not decayed.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for is_fast, parameter in _by_speed(model):
        fast = is_fast and loraplus_lr_ratio is not None
        groups.setdefault((fast, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (loraplus_lr_ratio or 1.0) if fast else learning_rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (fast, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _by_speed(model: "nn.Module") -> "Iterator[tuple[bool, nn.Parameter]]":
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield "lora_B" in name or parameter.ndim == 1, parameter
