"""Starts of an adapter that look at data or weights: EVA, LoftQ, and what PiSSA and OLoRA took
out of the base."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.quantization import dequantised
from luthier.models.weights import shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    import datasets
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER_NAME = "default"
_START = "_luthier_start"  # attribute of the PEFT model: A and B as PiSSA or OLoRA made them
EVA_BATCHES = 8
EVA_ROWS = 16  # of a batch, at least


def lora_layers(model: "nn.Module") -> "Iterator[tuple[str, Any]]":
    """Every PEFT LoRA layer by its name in the base model."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def remember_start(model: "PreTrainedModel") -> None:
    """Keep a float32 CPU copy of A (r, in) and B (out, r): what is no longer in the base.

    A resumed run makes the same again: exact SVD and QR draw no random numbers, the fast SVD draws
    them from the run's seed. Signs of singular vectors may differ between machines, but only the
    product B A counts, here and in the base.
    """
    start = {
        name: (
            layer.lora_A[ADAPTER_NAME].weight.detach().float().cpu().clone(),
            layer.lora_B[ADAPTER_NAME].weight.detach().float().cpu().clone(),
        )
        for name, layer in lora_layers(model)
    }
    object.__setattr__(model, _START, start)


def remembered_start(model: "PreTrainedModel") -> "dict[str, tuple[Tensor, Tensor]] | None":
    """The A and B that `remember_start` kept, by module; None where the base is unchanged."""
    return getattr(model, _START, None)


def start_loftq(model: "PreTrainedModel", base_folder: Path) -> None:
    """Start A and B so that scale * B A is nearest to what quantisation lost.

    One step of LoftQ (arXiv 2310.08659, algorithm 1 with the quantised base given). Not by peft
    0.21 `utils/loftq_utils.py` replace_lora_weights_loftq: that needs a GPU, and leaves out the
    scale alpha / r, so that the correction comes out too large or too small.

    Raises:
        ModelError: the base's folder lacks the weights of a quantised layer.
    """
    import torch

    layers = dict(lora_layers(model))
    for _, tensors in shards(base_folder):
        for name in [n for n in layers if f"{n}.weight" in tensors]:
            layer = layers.pop(name)
            base = layer.get_base_layer()
            device = base.weight.device
            lost = tensors[f"{name}.weight"].to(device, torch.float32) - dequantised(base)
            rank, scale = layer.r[ADAPTER_NAME], layer.scaling[ADAPTER_NAME]
            u, singular, vh = torch.linalg.svd(lost, full_matrices=False)
            root = torch.sqrt(singular[:rank] / scale)
            layer.lora_A[ADAPTER_NAME].weight.data = _padded((root[:, None] * vh[:rank]), rank, 0)
            layer.lora_B[ADAPTER_NAME].weight.data = _padded(u[:, :rank] * root, rank, 1)
    if layers:
        raise ModelError(f"{base_folder}: no weights of {next(iter(layers))} to start LoftQ from.")


def _padded(matrix: "Tensor", rank: int, dimension: int) -> "Tensor":
    """Zeros where the rank is above the matrix' own."""
    import torch

    shape = list(matrix.shape)
    shape[dimension] = rank - shape[dimension]
    if shape[dimension] <= 0:
        return matrix.contiguous()
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=dimension)


def start_eva(model: "PreTrainedModel", rows: "datasets.Dataset", seed: int) -> None:
    """Start A from the principal directions of each layer's inputs (EVA, arXiv 2410.07170), with
    ranks moved to where the inputs vary most (peft 0.21 `tuners/lora/eva.py`, rho 2).

    Raises:
        ModelError: too few tokens, or a rank that is too large for a layer.
    """
    from peft import initialize_lora_eva_weights

    layers = dict(lora_layers(model))
    config: Any = model.peft_config[ADAPTER_NAME]
    directions = round(
        max(layer.r[ADAPTER_NAME] for layer in layers.values()) * config.eva_config.rho
    )
    narrowest = min(layer.in_features for layer in layers.values())
    if directions > narrowest:
        raise ModelError(
            f"sft.lora: eva looks for {directions} directions ({config.eva_config.rho:g} times "
            f"the rank), and a layer has {narrowest} inputs. Set r to at most "
            f"{math.floor(narrowest / config.eva_config.rho)}."
        )
    batches = _eva_batches(rows, directions, seed)
    device = model.device
    initialize_lora_eva_weights(
        model,
        [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches],
        show_progress_bar=False,
        gather_distributed_inputs=False,
    )


def _eva_batches(
    rows: "datasets.Dataset", tokens_needed: int, seed: int
) -> "list[dict[str, Tensor]]":
    """Batches of a sample of rows by seed; each has more tokens than directions are sought, or
    PEFT would look at it for ever."""
    import torch

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    batches: list[list[list[int]]] = []
    batch: list[list[int]] = []
    for index in order:
        batch.append(rows[index]["input_ids"])
        if len(batch) >= EVA_ROWS and sum(map(len, batch)) >= tokens_needed:
            batches.append(batch)
            batch = []
        if len(batches) == EVA_BATCHES:
            break
    if not batches:
        if sum(map(len, batch)) < tokens_needed:
            raise ModelError(
                f"sft.lora: eva needs at least {tokens_needed} tokens of training rows, and there "
                f"are {sum(map(len, batch))}. Set a smaller r, or init_lora_weights: default."
            )
        batches.append(batch)
    return [_padded_batch(batch) for batch in batches]


def _padded_batch(rows: list[list[int]]) -> "dict[str, Tensor]":
    import torch

    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
