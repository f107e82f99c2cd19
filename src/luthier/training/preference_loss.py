"""The losses of preference optimisation, each a function of what a pair's replies are worth.

P pairs. All logarithms are natural, of a reply's probability given its prompt. The names are TRL's
(1.16, `trainer/dpo_trainer.py` `_compute_loss`), and so are the values: tests hold them against
TRL's own and against each paper's formula.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.training.dpo_section import DPOSection


@dataclass(frozen=True)
class Pairs:
    """What the losses know of P pairs; every tensor is (P,).

    `chosen` and `rejected` are log p of the replies under the model, weighted by LD-DPO where it
    is on, `chosen_reference` and `rejected_reference` the same under the reference;
    `chosen_plain` and `rejected_plain` are without that weighting; `chosen_tokens` and
    `rejected_tokens` count the replies' tokens.
    """

    chosen: "Tensor"
    rejected: "Tensor"
    chosen_reference: "Tensor"
    rejected_reference: "Tensor"
    chosen_plain: "Tensor"
    rejected_plain: "Tensor"
    chosen_tokens: "Tensor"
    rejected_tokens: "Tensor"

    @property
    def chosen_ratio(self) -> "Tensor":
        """How much likelier the chosen replies are than under the reference."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> "Tensor":
        """How much likelier the rejected replies are than under the reference."""
        return self.rejected - self.rejected_reference

    @property
    def delta(self) -> "Tensor":
        """The margin of the log-ratios; times beta it is the margin of the rewards."""
        return self.chosen_ratio - self.rejected_ratio


Loss = Callable[[Pairs, "DPOSection"], "Tensor"]
LOSSES: dict[str, Loss] = {}


def preference_loss(function: Loss) -> Loss:
    """Register a function under its own name."""
    LOSSES[function.__name__] = function
    return function


def pair_losses(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """The weighted sum of the section's losses but `sft`, of each pair; (P,)."""
    total = pairs.chosen.new_zeros(pairs.chosen.shape)
    for name, weight in zip(section.loss_type, section.weights, strict=True):
        if name != "sft":
            total = total + weight * LOSSES[name](pairs, section)
    return total


def sft_weight(section: "DPOSection") -> float:
    """The weight of -log p of a chosen token in the loss."""
    return dict(zip(section.loss_type, section.weights, strict=True)).get("sft", 0.0)


def loss_at_start(section: "DPOSection") -> float | None:
    """The loss while the model is the reference: ln 2 for sigmoid. None where it depends on more
    than the log-ratios."""
    if set(section.loss_type) & {"sft", "simpo", "orpo"}:
        return None
    import torch

    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    pairs = Pairs(zero, zero, zero, zero, zero, zero, one, one)
    return float(pair_losses(pairs, section))


def _log_sigmoid(value: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid

    return logsigmoid(value)


@preference_loss
def sigmoid(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """DPO, arXiv 2305.18290, equation 7."""
    return -_log_sigmoid(section.beta * pairs.delta)


@preference_loss
def hinge(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """SLiC, arXiv 2305.10425, on normalised rewards (arXiv 2309.06657, section 3)."""
    return (1 - section.beta * pairs.delta).relu()


@preference_loss
def ipo(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """IPO, arXiv 2310.12036, equation 17; log-ratios a token, as its authors told TRL."""
    chosen = pairs.chosen_ratio / pairs.chosen_tokens
    rejected = pairs.rejected_ratio / pairs.rejected_tokens
    return (chosen - rejected - 1 / (2 * section.beta)) ** 2


@preference_loss
def robust(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """Robust DPO, arXiv 2403.00409, equation 12: unbiased when a known share is reversed."""
    flipped, margin = section.label_smoothing, section.beta * pairs.delta
    kept = -(1 - flipped) * _log_sigmoid(margin)
    return (kept + flipped * _log_sigmoid(-margin)) / (1 - 2 * flipped)


@preference_loss
def exo_pair(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """EXO, arXiv 2402.00856, equation 16: KL from the model's preference to the smoothed label."""
    margin, flipped = section.beta * pairs.delta, section.label_smoothing
    log_won, log_lost = _log_sigmoid(margin), _log_sigmoid(-margin)
    won = margin.sigmoid() * (log_won - math.log1p(-flipped))
    return won + (-margin).sigmoid() * (log_lost - math.log(flipped))


@preference_loss
def nca_pair(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """NCA, arXiv 2402.05369, with two replies and the better one's reward alone."""
    chosen, rejected = section.beta * pairs.chosen_ratio, section.beta * pairs.rejected_ratio
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


@preference_loss
def bco_pair(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """BCO, arXiv 2404.04656, without its reward shift."""
    chosen, rejected = section.beta * pairs.chosen_ratio, section.beta * pairs.rejected_ratio
    return -_log_sigmoid(chosen) - _log_sigmoid(-rejected)


@preference_loss
def sppo_hard(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """SPPO, arXiv 2405.00675, equation 4.7, with a win probability of 1."""
    wanted = 0.5 / section.beta
    return (pairs.chosen_ratio - wanted) ** 2 + (pairs.rejected_ratio + wanted) ** 2


@preference_loss
def apo_zero(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """APO-zero, arXiv 2408.06266, equation 7: chosen replies are better than the model's own."""
    chosen, rejected = section.beta * pairs.chosen_ratio, section.beta * pairs.rejected_ratio
    return 1 - chosen.sigmoid() + rejected.sigmoid()


@preference_loss
def apo_down(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """APO-down, arXiv 2408.06266, equation 8: the model's own are better than chosen replies."""
    return (
        (section.beta * pairs.chosen_ratio).sigmoid() + 1 - (section.beta * pairs.delta).sigmoid()
    )


@preference_loss
def discopop(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """DiscoPOP, arXiv 2406.08414, equation 5: logistic and exponential loss, blended."""
    margin = section.beta * pairs.delta
    exponential = (margin / section.discopop_tau).sigmoid()
    return -_log_sigmoid(margin) * (1 - exponential) + (-margin).exp() * exponential


@preference_loss
def sigmoid_norm(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """Length-normalised DPO, arXiv 2411.15124 (Tulu 3), equation 6."""
    chosen = pairs.chosen_ratio / pairs.chosen_tokens
    rejected = pairs.rejected_ratio / pairs.rejected_tokens
    return -_log_sigmoid(section.beta * (chosen - rejected))


@preference_loss
def simpo(pairs: Pairs, section: "DPOSection") -> "Tensor":
    """SimPO, arXiv 2405.14734, equation 6: without a reference, log p a token."""
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    return -_log_sigmoid(section.beta * (chosen - rejected) - section.simpo_gamma)


@preference_loss
def orpo(pairs: Pairs, _section: "DPOSection") -> "Tensor":
    """The odds ratio of ORPO, arXiv 2403.07691, equation 7, without a reference; the whole of it
    is loss_type: [sft, orpo] with loss_weights: [1, lambda]."""
    chosen, rejected = (
        mean - _log_1_minus_exp(mean)
        for mean in (
            pairs.chosen / pairs.chosen_tokens,
            pairs.rejected / pairs.rejected_tokens,
        )
    )
    return -_log_sigmoid(chosen - rejected)


def _log_1_minus_exp(value: "Tensor") -> "Tensor":
    """log(1 - exp(value)) of negative numbers, exact near 0 and far from it: Maechler (2012),
    https://cran.r-project.org/package=Rmpfr, vignette log1mexp-note."""
    import torch

    near = value > -math.log(2)
    far_away = torch.where(near, value.new_tensor(-1.0), value)
    return torch.where(near, (-value.expm1()).log(), (-far_away.exp()).log1p())
