"""The loss of a batch of pairs, and what one wants to see of it.

B pairs of a batch, N supervised tokens, V tokens of the vocabulary.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.training.loss import Head, supervised_logits
from luthier.training.preference_loss import Pairs, pair_losses, sft_weight

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.training.dpo_section import DPOSection
    from luthier.training.meter import Counts


def reply_log_probs(
    model: "nn.Module", inputs: dict[str, Any], *, share_prefix: bool, head: Head = "positions"
) -> "Tensor":
    """(B, 4): log p in nats of a pair's tokens, of the kinds that `pair_rows.REFERENCE` has.

    Args:
        model: a causal language model, with or without PEFT adapter.
        inputs: a batch of PairCollator.
        share_prefix: compute the rows' common first tokens once.
        head: as `loss.summed_loss`.
    """
    import torch

    logits_NV = supervised_logits(model, inputs, share_prefix=share_prefix, head=head).float()
    targets_N = inputs["supervision"].targets_N
    log_p_N = -torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    # The same sums in the same order wherever a batch is computed, unlike those of index_add.
    sums = torch.segment_reduce(log_p_N, "sum", lengths=inputs["stretches_4B"], initial=0.0)
    return sums.reshape(-1, 4)


def pairs_of(
    found_B4: "Tensor", reference_B4: "Tensor", inputs: dict[str, Any], alpha: float
) -> Pairs:
    """What the losses know of a batch. `alpha` is LD-DPO's weight of a longer reply's rest
    (arXiv 2409.06411, equation 8), of model and reference alike."""
    stretches_B4 = inputs["stretches_4B"].reshape(-1, 4)

    def weighted(log_p_B4: "Tensor", first: int, weight: float) -> "Tensor":
        return log_p_B4[:, first] + weight * log_p_B4[:, first + 1]

    return Pairs(
        chosen=weighted(found_B4, 0, alpha),
        rejected=weighted(found_B4, 2, alpha),
        chosen_reference=weighted(reference_B4, 0, alpha),
        rejected_reference=weighted(reference_B4, 2, alpha),
        chosen_plain=weighted(found_B4, 0, 1.0),
        rejected_plain=weighted(found_B4, 2, 1.0),
        chosen_tokens=stretches_B4[:, :2].sum(1).to(found_B4.dtype),
        rejected_tokens=stretches_B4[:, 2:].sum(1).to(found_B4.dtype),
    )


@dataclass
class PairMeter:
    """Means over the pairs since the last reading, by TRL's names. Nothing is waited for until
    they are read."""

    _sums: "Tensor | None" = field(default=None)
    _pairs: int = 0

    NAMES = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    )

    def count(self, pairs: Pairs, beta: float) -> None:
        """A batch went through."""
        import torch

        chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
        rows = [
            chosen,
            rejected,
            chosen - rejected,
            (chosen > rejected).to(chosen.dtype),
            pairs.chosen_plain,
            pairs.rejected_plain,
        ]
        sums = torch.stack(rows).detach().double().sum(1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._pairs += len(chosen)

    def read(self) -> dict[str, float]:
        """The means; the next reading starts here. Empty when nothing was counted."""
        if self._sums is None:
            return {}
        means = (self._sums / self._pairs).tolist()
        self._sums, self._pairs = None, 0
        return dict(zip(self.NAMES, means, strict=True))


@dataclass(frozen=True)
class PairLoss:
    """From a batch of pairs to its share of an optimizer step's loss."""

    section: "DPOSection"
    share_prefix: bool
    head: Head
    meter: PairMeter = field(default_factory=PairMeter)

    def pairs(self, model: "nn.Module", inputs: dict[str, Any]) -> Pairs:
        """What the losses know of a batch."""
        found_B4 = reply_log_probs(model, inputs, share_prefix=self.share_prefix, head=self.head)
        alpha = 1.0 if self.section.ld_alpha is None else self.section.ld_alpha
        return pairs_of(found_B4, inputs["reference_B4"], inputs, alpha)

    def __call__(self, model: "nn.Module", inputs: dict[str, Any], step: "Counts") -> "Tensor":
        """The mean over the pairs of the whole step, and of `sft` over its chosen tokens."""
        pairs = self.pairs(model, inputs)
        self.meter.count(pairs, self.section.beta)
        loss = pair_losses(pairs, self.section).sum() / step.pairs
        weight = sft_weight(self.section)
        return loss - weight * pairs.chosen_plain.sum() / step.chosen_tokens if weight else loss
