"""Whether two models are the same function: their logits on real rows.

T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def probe_logits(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> "list[Tensor]":
    """Float32 logits (T, V) of every row, each row alone in its batch: no padding to differ by."""
    import torch

    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu()
            for row in rows
        ]


def largest_logit(logits: "Sequence[Tensor]") -> float:
    """The largest absolute logit, the scale that float32 rounding is relative to."""
    import torch

    return float(torch.stack([row.abs().max() for row in logits]).max())


def max_logit_difference(one: "Sequence[Tensor]", other: "Sequence[Tensor]") -> float:
    """The largest absolute difference between two results of `probe_logits`; NaN if any is NaN."""
    import torch

    differences = [(a - b).abs().max() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(differences).max())
