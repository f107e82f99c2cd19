"""The loss on supervised positions, without the work whose result nobody reads.

Two savings, both exact. Only positions that predict a supervised token go through the head (a
transformers model's own `logits_to_keep`, so every architecture's scaling stays its own). And the
tokens that all rows of a batch begin with, the system prompt, go through the model once, not once
a row; gradients flow through the shared keys and values.

B rows of a batch, T tokens of its longest row, P shared first tokens, K kept positions.
"""

from typing import TYPE_CHECKING, Any

from luthier.data.tokens import IGNORE_INDEX
from luthier.training.batches import PaddedCollator

if TYPE_CHECKING:
    import datasets
    from torch import Tensor, nn

# Below this many tokens, two forward passes cost more than they save.
MIN_SHARED_PREFIX_TOKENS = 8
EVALUATION_BATCH_ROWS = 16


def shared_prefix_length(ids_BT: "Tensor", labels_BT: "Tensor") -> int:
    """P: how many first tokens all rows share, all of them before the first position whose next
    token is supervised. 0 when sharing does not pay."""
    if ids_BT.shape[0] < 2:
        return 0
    same_T = (ids_BT == ids_BT[:1]).all(dim=0) & (labels_BT == IGNORE_INDEX).all(dim=0)
    differs = (~same_T).nonzero()
    first_difference = int(differs[0]) if len(differs) else ids_BT.shape[1]
    # The last shared token must stay in the suffix: its position may predict a supervised one.
    length = first_difference - 1
    return length if length >= MIN_SHARED_PREFIX_TOKENS else 0


def supports_shared_prefix(model: "nn.Module") -> bool:
    """Whether every layer attends to all earlier tokens through a plain key-value cache."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None)
    return set(layer_types) == {"full_attention"} and not sliding


def summed_loss(
    model: "nn.Module", inputs: "dict[str, Tensor]", *, share_prefix: bool
) -> "Tensor":
    """Sum over supervised positions of -log p(label), in nats; a scalar with gradient.

    Args:
        model: a causal language model, with or without PEFT adapter.
        inputs: `input_ids`, `attention_mask`, `labels`, each (B, T), padded on the right.
        share_prefix: compute the rows' common first tokens once.
    """
    import torch

    ids_BT, labels_BT = inputs["input_ids"], inputs["labels"]
    prefix = shared_prefix_length(ids_BT, labels_BT) if share_prefix else 0
    labels_BT = labels_BT[:, prefix:]
    predicts_BT = labels_BT[:, 1:] != IGNORE_INDEX
    positions_K = predicts_BT.any(dim=0).nonzero().squeeze(1)
    call: dict[str, Any] = {
        "input_ids": ids_BT[:, prefix:],
        "attention_mask": inputs["attention_mask"],
        "logits_to_keep": positions_K,
    }
    if prefix:
        call |= _with_prefix_cache(model, ids_BT, prefix)
    else:
        call["use_cache"] = False
    logits_BKV = model(**call).logits
    targets_BK = labels_BT[:, 1:][:, positions_K]
    supervised_BK = targets_BK != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(
        logits_BKV[supervised_BK].float(), targets_BK[supervised_BK], reduction="sum"
    )


def _with_prefix_cache(model: "nn.Module", ids_BT: "Tensor", prefix: int) -> dict[str, Any]:
    """Keys and values of the first `prefix` tokens, computed on one row, repeated for all."""
    import torch
    from transformers import DynamicCache

    rows, width = ids_BT.shape
    cache = DynamicCache()
    model(input_ids=ids_BT[:1, :prefix], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    positions_T = torch.arange(prefix, width, device=ids_BT.device)
    return {
        "past_key_values": cache,
        "use_cache": True,
        "position_ids": positions_T.unsqueeze(0).expand(rows, -1),
    }


def supervised_tokens(inputs: "dict[str, Tensor]") -> int:
    """How many positions of a batch have a label."""
    return int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())


def mean_loss(model: "nn.Module", rows: "datasets.Dataset") -> float:
    """Mean -log p(label) per supervised token over `rows`, in nats, without gradient.

    Rows go through the model sorted by length, 16 at a time.
    """
    import torch

    device = next(model.parameters()).device
    collate = PaddedCollator(pad_token_id=0)
    share = supports_shared_prefix(model)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH_ROWS):
            batch = collate([rows[row] for row in order[start : start + EVALUATION_BATCH_ROWS]])
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            total += float(summed_loss(model, inputs, share_prefix=share))
            count += supervised_tokens(inputs)
    return total / count
