"""Preference optimisation as an objective: pairs, their reference, and what is measured of both.

V tokens of the vocabulary, N supervised tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.models.adapter_files import ADAPTER_WEIGHTS
from luthier.models.loading import pick_device
from luthier.progress import Reporter
from luthier.store.environment import package_versions
from luthier.training.batches import LengthSortedBatches, row_lengths
from luthier.training.divergence import StartWeights, divergence
from luthier.training.dpo_section import DPOSection
from luthier.training.job import TrainingJob
from luthier.training.meter import Counts
from luthier.training.objective import Objective, row_batches
from luthier.training.pair_batches import PairCollator
from luthier.training.pair_loss import PairLoss, PairMeter
from luthier.training.pair_rows import PairRows
from luthier.training.performance import Decisions
from luthier.training.preference_gates import (
    closing_gates,
    reference_gates,
    truncation_gate,
)
from luthier.training.preference_loss import pair_losses, sft_weight
from luthier.training.reference import (
    HeldSplit,
    ReferenceStore,
    Scorer,
    adapter_digest,
    compute,
    stored_adapter_digest,
)
from luthier.training.supervised import choose_head

if TYPE_CHECKING:
    import datasets
    from torch import nn
    from transformers import PreTrainedModel

VALIDATION_TOKENS = 2048
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Making:
    """What an objective of preferences is made from."""

    job: TrainingJob
    section: DPOSection
    decisions: Decisions
    rows: PairRows
    model: "PreTrainedModel"
    pad_token_id: int
    reporter: Reporter
    asked_to_stop: Callable[[], bool]


def preference_objective(making: Making) -> Objective:
    """The reference is computed, or found, and measured against the model here: both are the same
    until the first step.

    Raises:
        InterruptedRunError: a stop was requested while the reference was computed.
    """
    job, section, model = making.job, making.section, making.model
    share = making.decisions.share_prefix.on
    collate = PairCollator(making.pad_token_id, share_prompt=share)
    head = choose_head(making.decisions, model)
    scorer = Scorer(model, collate, share, head)
    store = _store(making)
    found = store.read(making.reporter.say)
    is_reused = found is not None
    if found is None:
        assert making.rows.validation is not None, "load sees to it"
        splits: dict[HeldSplit, datasets.Dataset] = {
            "train": making.rows.train,
            "validation": making.rows.validation,
        }
        found = compute(scorer, splits, job.scratch, making.reporter, making.asked_to_stop)
        store.write(found)
    else:
        making.reporter.say("  The reference's log-probabilities are those of an earlier run.")
    rows = making.rows.with_reference(found["train"], found["validation"])
    loss = PairLoss(section, share, head)
    start = StartWeights.of(model)

    def validate(model: "nn.Module") -> dict[str, float]:
        return _validate(model, rows, collate, loss, start)

    return Objective(
        rows=rows,
        batches=lambda: row_batches(section, making.decisions, rows, job.seed),
        collate=collate,
        count=count_pairs,
        loss=loss,
        validate=validate,
        step_metrics=loss.meter.read,
        is_real=math.isfinite,  # hinge can be 0
        gates=[
            *reference_gates(scorer, rows, _digests(making)),
            truncation_gate(making.rows, job.dataset),
        ],
        closing_gates=lambda log, kept_step: closing_gates(section, rows, log, kept_step),
        facts={"reference": {"key": store.key, "reused": is_reused, **store.identity}},
    )


def _store(making: Making) -> ReferenceStore:
    job = making.job
    assert job.shared is not None, "the stage gives one"
    return ReferenceStore(
        job.shared / "references",
        {
            "inputs": job.reference_inputs,
            "numerics": str(making.model.dtype),
            "quantization": (
                making.section.quantization.key_fields()
                if making.section.method == "qlora"
                else None
            ),
            "device": pick_device(),
            "packages": dict(package_versions(_PACKAGES)),
        },
    )


def _digests(making: Making) -> tuple[str, str] | None:
    """The adapter that is in the model, and the SFT adapter as it is stored; None without one."""
    if making.job.start is None:
        return None
    stored = stored_adapter_digest(making.job.start / ADAPTER_WEIGHTS)
    return adapter_digest(making.model), stored


def count_pairs(rows: Sequence[dict[str, Any]]) -> Counts:
    """Of rows of pairs."""
    tokens = sum(len(row["input_ids"]) for row in rows)
    return Counts(
        real_tokens=tokens,
        supervised_tokens=tokens - sum(row["prompt_tokens"] for row in rows),
        pairs=len(rows),
        chosen_tokens=sum(row["chosen_tokens"] for row in rows),
    )


def _validate(
    model: "nn.Module",
    rows: PairRows,
    collate: PairCollator,
    loss: PairLoss,
    start: StartWeights,
) -> dict[str, float]:
    """Means over the held-out pairs: the loss and what `PairMeter` has, and the divergence."""
    import torch

    assert rows.validation is not None, "load sees to it"
    meter, total = PairMeter(), 0.0
    sft_total, chosen_tokens = 0.0, 0
    device = next(model.parameters()).device
    batches = LengthSortedBatches(
        row_lengths(rows.validation), rows=None, tokens=VALIDATION_TOKENS, seed=0
    )
    with torch.inference_mode():
        for numbers in batches:
            some = list(rows.validation.select(numbers))
            inputs = {name: value.to(device) for name, value in collate(some).items()}
            pairs = loss.pairs(model, inputs)
            meter.count(pairs, loss.section.beta)
            total += float(pair_losses(pairs, loss.section).double().sum())
            sft_total -= float(pairs.chosen_plain.double().sum())
            chosen_tokens += count_pairs(some).chosen_tokens
    mean = total / len(rows.validation) + sft_weight(loss.section) * sft_total / chosen_tokens
    return {
        "eval_loss": mean,
        **{f"eval_{name}": value for name, value in meter.read().items()},
        "eval_chosen_nats_per_token": sft_total / chosen_tokens,
        "eval_kl": divergence(model, start, rows.validation, collate),
    }
