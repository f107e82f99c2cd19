"""What is done to train faster, decided by machine and model, and why."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.training.dpo_section import DPOSection
from luthier.training.loss import supports_shared_prefix
from luthier.training.packing import why_not_packed
from luthier.training.section import Switch, TrainingSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Padded tokens that go through the model at once where batches are split: more are hardly faster
# (2 cores: none from 500 on; a GPU fills its matrix units with some thousands), and memory grows
# with them.
PART_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class Decision:
    """Whether something is done, and why."""

    on: bool
    why: str


@dataclass(frozen=True)
class Decisions:
    """One decision for each field of `PerformanceSection`."""

    share_prefix: Decision
    supervised_head: Decision
    length_sorted: Decision
    split_batches: Decision
    packing: Decision
    fused_lora: Decision

    def as_facts(self) -> dict[str, dict[str, Any]]:
        """For the manifest: {name: {on, why}}."""
        return {name: {"on": one.on, "why": one.why} for name, one in vars(self).items()}


def decide(section: TrainingSection, model: "PreTrainedModel", device: str) -> Decisions:
    """What `auto` means here.

    Raises:
        ModelError: the config asks for what cannot be done; the message says why.
    """
    return Decisions(
        share_prefix=_decide(
            section, "share_prefix", _against_sharing(section) or _against_prefixes_of(model)
        ),
        supervised_head=_decide(section, "supervised_head", None),
        length_sorted=_decide(section, "length_sorted", None, _against_sorting(section)),
        split_batches=_decide(section, "split_batches", _against_splitting(section)),
        packing=_decide(section, "packing", *_against_packing(section, model, device)),
        fused_lora=_decide(section, "fused_lora", _against_fusing(section)),
    )


def _decide(
    section: TrainingSection, name: str, impossible: str | None, unwise: str | None = None
) -> Decision:
    switch: Switch = getattr(section.switches, name)
    if switch is False:
        return Decision(False, "switched off in the config")
    if impossible is not None:
        if switch is True:
            raise ModelError(
                f"{section.stage_name}.performance.{name}: true is not possible: {impossible}."
            )
        return Decision(False, impossible)
    if switch is True:
        return Decision(True, "switched on in the config")
    return Decision(False, unwise) if unwise is not None else Decision(True, "exact and faster")


def _against_sorting(section: TrainingSection) -> str | None:
    """Why rows of like length are better not put together; None where it does no harm.

    On data/scope_policy, where refusals are short, a step of four sorted pairs saw one kind of
    request, and the last ones had the last word: of four runs with slightly other rates and rows
    one refused nothing and one 55 %. Mixed steps took the same time.
    """
    if section.stage_name == "dpo":
        return "kinds of pairs differ in length, and a step would see one kind only"
    return None


def _against_splitting(section: TrainingSection) -> str | None:
    """Why batches go through the model whole; None where they need not."""
    if section.per_device_batch_size is None:
        return "batch_tokens says how much goes through the model at once"
    if section.processes > 1:
        return "the wrapper of several processes takes one pass through the model a step"
    return None


def _against_sharing(section: TrainingSection) -> str | None:
    if section.method != "full" and section.lora.dropout > 0:
        return "dropout would be drawn once for all rows of a batch"
    if section.noise_alpha is not None:
        return "NEFTune's noise would be drawn once for all rows of a batch"
    if section.gradient_checkpointing:
        return "gradient checkpointing drops the keys and values that would be shared"
    if section.processes > 1:
        return "the wrapper of several processes takes one pass through the model a step"
    return None


def _against_prefixes_of(model: "PreTrainedModel") -> str | None:
    if supports_shared_prefix(model):
        return None
    return "the model has layers that do not attend to all earlier tokens"


def _against_packing(
    section: TrainingSection, model: "PreTrainedModel", device: str
) -> tuple[str | None, str | None]:
    """(why it is impossible, why it is unwise)."""
    if isinstance(section, DPOSection):
        return "a pair's replies share a sequence already", None
    if section.batch_tokens is None:
        return "it needs batch_tokens, the length of a pack", None
    if section.noise_alpha is not None:
        return "NEFTune's noise would be scaled by the length of the pack", None
    impossible = why_not_packed(model)
    if impossible is not None:
        return impossible, None
    if device == "cpu":
        return None, "on a CPU, padding of rows of similar length costs less than packing gains"
    return None, None


def _against_fusing(section: TrainingSection) -> str | None:
    if section.method == "full":
        return "there is no adapter"
    if section.lora.use_dora:
        return "DoRA's layers have a formula of their own"
    return None


_AGAINST = {
    "share_prefix": _against_sharing,
    "split_batches": _against_splitting,
    "fused_lora": _against_fusing,
}


def is_foreseen(section: TrainingSection, name: str) -> bool:
    """Whether a part will be on, as far as the section alone says: one of `_AGAINST`."""
    return getattr(section.switches, name) is not False and _AGAINST[name](section) is None
