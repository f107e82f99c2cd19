"""Whether two models are the same function: their logits on real rows.

T tokens of a row, P of them that are looked at, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.models.weights import describe_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_FLOAT32_BYTES = 4
_ROOM = 1.2  # of the weights: activations and the allocator's own come on top


def probe_logits(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], *, most_positions: int | None = None
) -> "list[Tensor]":
    """Float32 logits (P, V) of every row, each row alone in its batch: no padding to differ by.

    With `most_positions`, P is at most that: evenly spaced, the last one among them. Without, T.
    """
    import torch

    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([row], device=model.device))
            .logits[0, _places(len(row), most_positions)]
            .float()
            .cpu()
            for row in rows
        ]


def _places(tokens: int, most: int | None) -> list[int]:
    count = tokens if most is None else min(tokens, most)
    return [tokens - 1 - place * tokens // count for place in range(count)][::-1]


def largest_logit(logits: "Sequence[Tensor]") -> float:
    """The largest absolute logit, the scale that float32 rounding is relative to."""
    import torch

    return float(torch.stack([row.abs().max() for row in logits]).max())


def max_logit_difference(one: "Sequence[Tensor]", other: "Sequence[Tensor]") -> float:
    """The largest absolute difference between two results of `probe_logits`; NaN if any is NaN."""
    import torch

    differences = [(a - b).abs().max() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(differences).max())


def check_device(folder: Path) -> str:
    """Where a model folder is compared in float32: on the GPU if all its weights and a fifth more
    are free there, else on the CPU, whose memory is larger."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    free_bytes, _ = torch.cuda.mem_get_info()
    wanted_bytes = describe_weights(folder)["parameters"] * _FLOAT32_BYTES * _ROOM
    return "cuda" if wanted_bytes <= free_bytes else "cpu"
