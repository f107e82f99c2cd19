"""How far a model went from where it began: KL(model || reference) on held-out replies.

The reference is the model with the weights that it had at the start, which are put in its place
for a forward pass: an adapter's, kept on the processor.

N supervised tokens, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.training.loss import evaluating, supervised_logits

if TYPE_CHECKING:
    import datasets
    from torch import Tensor, nn

# N x V numbers of two models stand in memory at once.
_MOST_TOKENS = 512
_MOST_PAIRS = 32


@dataclass(frozen=True)
class StartWeights:
    """What is trained, as it was when this was made."""

    weights: "dict[str, Tensor]"

    @classmethod
    def of(cls, model: "nn.Module") -> "StartWeights":
        """A copy on the processor."""
        return cls(
            {
                name: parameter.detach().cpu().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        )

    @contextmanager
    def in_place(self, model: "nn.Module") -> Iterator[None]:
        """Within it, `model` has the weights of the start."""
        trained = {name: p for name, p in model.named_parameters() if name in self.weights}
        now = {name: parameter.data for name, parameter in trained.items()}
        for name, parameter in trained.items():
            parameter.data = self.weights[name].to(parameter.device)
        try:
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = now[name]


def divergence(
    model: "nn.Module",
    start: StartWeights,
    rows: "datasets.Dataset",
    collate: Callable[..., dict[str, Any]],
) -> float:
    """Mean over the tokens of the first held-out pairs, both replies, of the sum over the
    vocabulary of p log(p / p_reference); nats. At most 32 pairs and some 512 tokens are looked at.
    """
    import torch

    total, tokens = 0.0, 0
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for number in range(min(_MOST_PAIRS, len(rows))):
            inputs = {k: v.to(device) for k, v in collate([rows[number]]).items()}
            with start.in_place(model):
                reference_NV = _log_softmax(model, inputs)
            log_p_NV = _log_softmax(model, inputs)
            total += float((log_p_NV.exp() * (log_p_NV - reference_NV)).double().sum())
            tokens += len(log_p_NV)
            if tokens >= _MOST_TOKENS:
                break
    return total / tokens


def _log_softmax(model: "nn.Module", inputs: dict[str, Any]) -> "Tensor":
    return supervised_logits(model, inputs, share_prefix=False).float().log_softmax(-1)
