"""The loss on supervised positions, without the work whose result nobody reads.

Four savings, all exact. Only positions that predict a supervised token go through the head (a
transformers model's own `logits_to_keep`, so every architecture's scaling stays its own), and
with head "pairs" of those only the (row, position) pairs that do. The tokens that all rows of a
batch begin with, the system prompt, go through the model once, not once a row; gradients flow
through the shared keys and values. Rows are padded on the right, where no real token looks, so
attention needs no padding mask and runs its causal kernel.

B rows of a batch, T tokens of its longest row, P shared first tokens, N supervised pairs of
(row, position), K different positions among them, V tokens of the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from luthier.data.tokens import IGNORE_INDEX
from luthier.training.batches import (
    LengthSortedBatches,
    PaddedCollator,
    Supervision,
    row_lengths,
    shared_prefix_length,
)

if TYPE_CHECKING:
    import datasets
    from torch import Tensor, nn

__all__ = [
    "Head",
    "evaluating",
    "mean_loss",
    "shared_prefix_length",
    "summed_loss",
    "supervised_logits",
    "supervised_tokens",
    "supports_head_on_pairs",
    "supports_shared_prefix",
    "unwrapped",
]

# Where the head runs: on every position; on those that predict a supervised token in any row; on
# the pairs of row and position that do.
Head = Literal["all", "positions", "pairs"]

EVALUATION_BATCH_TOKENS = 2048
# Two orders of a bfloat16 sum differ by far less, a head that saw other tokens by far more.
PROBE_TOLERANCE = 0.02


def supports_shared_prefix(model: "nn.Module") -> bool:
    """Whether every layer attends to all earlier tokens through a plain key-value cache."""
    config = unwrapped(model).config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None)
    return set(layer_types) == {"full_attention"} and not sliding


def supports_head_on_pairs(model: "nn.Module") -> bool:
    """Whether the head, given N chosen vectors as one row, gives the N logits of a plain forward.

    Measured on six random tokens: it holds where all that a model does after its head (scaling,
    soft caps) is done to every number alone.
    """
    import torch

    plain = unwrapped(model)
    vocabulary = plain.config.get_text_config().vocab_size
    device = next(plain.parameters()).device
    ids_BT = (torch.arange(6, device=device) * 7919 % vocabulary).reshape(2, 3)
    flat_N = torch.tensor([1, 3, 4, 5], device=device)
    with evaluating(plain), torch.no_grad():
        expected_NV = plain(input_ids=ids_BT, use_cache=False).logits.flatten(0, 1)[flat_N]
        try:
            with _head_sees(plain, flat_N):
                found = plain(input_ids=ids_BT, use_cache=False).logits
        except (AttributeError, IndexError, RuntimeError, ValueError):
            return False
    if found.shape != (1, *expected_NV.shape):
        return False
    difference = (found[0] - expected_NV).abs().max() / expected_NV.abs().max()
    return bool(difference <= PROBE_TOLERANCE)


def summed_loss(
    model: "nn.Module",
    inputs: "dict[str, Any]",
    *,
    share_prefix: bool,
    head: Head = "positions",
    label_smoothing: float = 0.0,
) -> "Tensor":
    """Sum over supervised positions of -log p(label), in nats; a scalar with gradient.

    Args:
        model: a causal language model, with or without PEFT adapter.
        inputs: a batch of PaddedCollator, PackedCollator or PairCollator; or `input_ids` and
            `labels`, (B, T), padded on the right, which costs a GPU one wait.
        share_prefix: compute the rows' common first tokens once. Packed rows share none.
        head: "pairs" is for models of which `supports_head_on_pairs` is true.
        label_smoothing: e of (1 - e) x -log p(label) + e x the mean of -log p over the whole
            vocabulary: torch's, and transformers' LabelSmoother (5.23, trainer_pt_utils.py).
    """
    import torch

    supervision = _supervision(inputs)
    logits_NV = supervised_logits(model, inputs, share_prefix=share_prefix, head=head)
    return torch.nn.functional.cross_entropy(
        logits_NV.float(),
        supervision.targets_N,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def supervised_logits(
    model: "nn.Module", inputs: "dict[str, Any]", *, share_prefix: bool, head: Head = "positions"
) -> "Tensor":
    """Logits (N, V) of the supervised pairs, row by row; arguments as `summed_loss`."""
    supervision, ids_BT = _supervision(inputs), inputs["input_ids"]
    packing, branches = inputs.get("packing"), inputs.get("branches")
    prefix = supervision.shared_prefix if share_prefix and packing is None else 0
    call: dict[str, Any] = {"input_ids": ids_BT[:, prefix:], "use_cache": False}
    if packing is not None:
        call |= packing.model_arguments()
    elif prefix:
        call |= _with_prefix_cache(model, ids_BT, prefix)
    if branches is not None:
        embeddings = unwrapped(model).get_input_embeddings()
        call |= branches.model_arguments(prefix, embeddings.weight.dtype)
    rows_N, positions_N, kept_N, _ = supervision.pairs_4N
    rows, width = call["input_ids"].shape
    flat_N = rows_N * width + (positions_N - prefix)
    if head == "pairs" and rows > 1:
        with _head_sees(model, flat_N):
            compact_1NV: Tensor = model(**call).logits
        return compact_1NV[0]
    if head != "all":
        positions_K = supervision.positions_K
        call["logits_to_keep"] = positions_K - prefix
        flat_N = rows_N * len(positions_K) + kept_N
    logits_BKV: Tensor = model(**call).logits
    if rows == 1 and head != "all" and len(positions_N) == logits_BKV.shape[1]:
        return logits_BKV[0]  # each position predicts one token: they are the pairs
    return logits_BKV.flatten(0, 1).index_select(0, flat_N)


def _supervision(inputs: "dict[str, Any]") -> Supervision:
    found: Supervision | None = inputs.get("supervision")
    if found is not None:
        return found
    # Of a batch that no collator of ours made.
    ids_BT = inputs["input_ids"]
    return Supervision.of(ids_BT, inputs["labels"]).to(ids_BT.device)


@contextmanager
def _head_sees(model: "nn.Module", flat_N: "Tensor") -> Iterator[None]:
    """Within it the head gets, as one row, the hidden states of the pairs `flat_N`, each
    row x width + position. Before the head, not instead of it: what wraps the model's forward
    (DDP, FSDP, PEFT) and what a model does to its logits stay."""

    def choose(_head: "nn.Module", arguments: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        hidden_BTH = arguments[0]
        chosen_NH = hidden_BTH.flatten(0, 1).index_select(0, flat_N)
        return (chosen_NH.unsqueeze(0), *arguments[1:])

    hook = unwrapped(model).get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


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


def unwrapped(model: "nn.Module") -> Any:
    """The model inside DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)


@contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Within it `model` is in eval mode: no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def supervised_tokens(inputs: "dict[str, Any]") -> int:
    """N: how many positions of a batch have a label. A collator's batch needs no GPU for it."""
    if "supervision" in inputs:
        return int(inputs["supervision"].pairs_4N.shape[1])
    return int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())


def mean_loss(model: "nn.Module", rows: "datasets.Dataset") -> float:
    """Mean -log p(label) per supervised token over `rows`, in nats, without gradient or dropout.

    Rows go through the model sorted by length, 2,048 padded tokens at a time.
    """
    import torch

    device = next(model.parameters()).device
    collate = PaddedCollator(pad_token_id=0)
    share = supports_shared_prefix(model)
    head: Head = "pairs" if supports_head_on_pairs(model) else "positions"
    losses, count = [], 0
    batches = LengthSortedBatches(
        row_lengths(rows), rows=None, tokens=EVALUATION_BATCH_TOKENS, seed=0
    )
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            some = rows[batch]
            pairs = zip(some["input_ids"], some["labels"], strict=True)
            cpu = collate([{"input_ids": ids, "labels": labels} for ids, labels in pairs])
            inputs = {name: value.to(device) for name, value in cpu.items()}
            losses.append(summed_loss(model, inputs, share_prefix=share, head=head).double())
            count += supervised_tokens(inputs)
        return float(torch.stack(losses).sum()) / count
