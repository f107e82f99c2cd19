"""What an export target would refuse of what is to be trained, told before any training (F32)."""

import math
from collections.abc import Iterator, Sequence

from luthier.models.adapter_section import CHANGES_BASE, LoraSection

MERGED_TARGETS = ("vllm", "ollama", "hub")  # they get one model, whatever it was trained as
VLLM_ADAPTER = "vllm-adapter"
# vllm/config/lora.py: MaxLoRARanks, the values of --max-lora-rank (default 16), as of v0.27.1.
VLLM_MAX_LORA_RANK = 512
_EVA_RHO = 2  # peft 0.21 EvaConfig: a layer's rank grows to rho * r at most


def refusals(method: str, lora: LoraSection | None, targets: Sequence[str]) -> list[str]:
    """One sentence for each thing that a target would refuse, with what to change.

    Args:
        method: lora, qlora or full.
        lora: the adapter's shape; None for full fine-tuning.
        targets: vllm, ollama and hub (merged models, which refuse nothing of this), vllm-adapter.

    Raises:
        ValueError: a target that is not one.
    """
    unknown = [target for target in targets if target not in (*MERGED_TARGETS, VLLM_ADAPTER)]
    if unknown:
        raise ValueError(f"{unknown[0]} is no export target")
    if VLLM_ADAPTER not in targets:
        return []
    if method == "full" or lora is None:
        return ["vllm-adapter: method: full makes no adapter; export vllm instead"]
    found = [*_refused_by_vllm(lora), *_wrong_in_vllm(lora)]
    return [f"{VLLM_ADAPTER}: {problem}, or export vllm (merged)" for problem in found]


def _refused_by_vllm(lora: LoraSection) -> Iterator[str]:
    """Sources, vLLM at v0.27.1: `vllm/lora/peft_helper.py` (_validate_features, validate_legal)
    and `vllm/lora/lora_model.py` (from_local_checkpoint, from_lora_tensors)."""
    if lora.use_dora:
        yield "vLLM refuses DoRA; set lora.use_dora: false"
    for field in ("modules_to_save", "train_embeddings", "trainable_token_indices"):
        if getattr(lora, field):
            yield f"vLLM serves no weights trained whole; leave out lora.{field}"
    rank = saved_rank(lora)
    if rank > VLLM_MAX_LORA_RANK:
        why = f" (saved at rank {rank}: see lora.init_lora_weights)" if rank != lora.r else ""
        yield f"vLLM serves ranks up to {VLLM_MAX_LORA_RANK}{why}; set a smaller lora.r"


def _wrong_in_vllm(lora: LoraSection) -> Iterator[str]:
    """What vLLM loads without a word and computes otherwise than it was trained."""
    # PEFTHelper reads neither pattern: one scale, alpha / r, for all modules. Converted adapters
    # have scale 1 everywhere, and EVA moves ranks at a constant scale.
    if lora.init_lora_weights not in CHANGES_BASE and not _has_one_scale(lora):
        yield (
            "vLLM ignores rank_pattern and alpha_pattern and would scale all modules alike; give "
            "both for the same modules with the same alpha / r, or leave them out"
        )
    if lora.init_lora_weights == "loftq":
        yield (
            "an adapter started by loftq also holds the correction of the 4-bit base, and is "
            "wrong on the 16-bit base that vLLM serves; set lora.init_lora_weights: default"
        )


def saved_rank(lora: LoraSection) -> int:
    """The largest rank that a module's saved matrices can have: PiSSA and OLoRA are saved at twice
    the trained rank, EVA moves ranks between modules."""
    rank = max([lora.r, *lora.rank_pattern.values()])
    if lora.init_lora_weights in CHANGES_BASE:
        return 2 * rank
    return _EVA_RHO * rank if lora.init_lora_weights == "eva" else rank


def _has_one_scale(lora: LoraSection) -> bool:
    patterns = lora.rank_pattern.keys() | lora.alpha_pattern.keys()
    scales = {
        _scale(lora, lora.rank_pattern.get(one, lora.r), lora.alpha_pattern.get(one, lora.alpha))
        for one in patterns
    }
    return scales <= {_scale(lora, lora.r, lora.alpha)}


def _scale(lora: LoraSection, rank: int, alpha: int) -> float:
    return alpha / (math.sqrt(rank) if lora.use_rslora else rank)
