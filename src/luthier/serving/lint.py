"""What an export target would refuse of what is to be trained, told before any training (F32)."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.errors import ServingError
from luthier.models.adapter_section import CHANGES_BASE, LoraSection
from luthier.serving.converter import converter_folder
from luthier.serving.ollama import quoted

VLLM_ADAPTER = "vllm-adapter"
MERGED_TARGETS = ("vllm", "gguf", "ollama", "hub")  # they get one model, however it was trained
TARGETS = (*MERGED_TARGETS, VLLM_ADAPTER)
# vllm/config/lora.py: MaxLoRARanks, the values of --max-lora-rank (default 16), the same in
# v0.27.1 and 0.32.0, without its 1.
VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_EVA_RHO = 2  # peft 0.21 EvaConfig: a layer's rank grows to rho * r at most

# The next three: vLLM 0.32.0, of the causal language models that transformers 5.19 knows.
# vllm/model_executor/models/registry.py, _PREVIOUSLY_SUPPORTED_MODELS: architecture and the last
# version that had it. What it does not know at all may run on transformers' own code.
_VLLM_REMOVED = {
    "BambaForCausalLM": "0.23.0",
    "Dots1ForCausalLM": "0.23.0",
    "FuyuForCausalLM": "0.25.0",
    "MiniMaxForCausalLM": "0.23.0",
    "MptForCausalLM": "0.28.0",
    "PersimmonForCausalLM": "0.25.0",
    "Phi4MultimodalForCausalLM": "0.12.0",
}
# Classes that vllm.model_executor.models.interfaces.supports_lora denies.
_VLLM_WITHOUT_LORA = (
    "BloomForCausalLM",
    "Cohere2MoeForCausalLM",
    "DbrxForCausalLM",
    "DeepseekV4ForCausalLM",
    "FalconForCausalLM",
    "FalconMambaForCausalLM",
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "Gemma3nForCausalLM",
    "HrmTextForCausalLM",
    "KimiLinearForCausalLM",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "MiMoV2FlashForCausalLM",
    "StableLmForCausalLM",
    "Zamba2ForCausalLM",
)
# Classes with LoRA whose `embedding_modules` is empty: none for embed_tokens and lm_head.
_VLLM_WITHOUT_EMBEDDINGS = (
    "AXK1ForCausalLM",
    "AfmoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma4ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GlmMoeDsaForCausalLM",
    "GptOssForCausalLM",
    "HYV3ForCausalLM",
    "HYV4ForCausalLM",
    "LagunaForCausalLM",
    "LongcatFlashForCausalLM",
    "MiniMaxM2ForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "OlmoHybridForCausalLM",
    "OlmoeForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3NextForCausalLM",
)


def refusals(
    method: str,
    lora: LoraSection | None,
    targets: Sequence[str],
    system_prompt: str | None = None,
) -> list[str]:
    """One sentence for each thing that a target would refuse, with what to change.

    Args:
        method: lora, qlora or full.
        lora: the adapter's shape; None for full fine-tuning.
        targets: those of `TARGETS`. Merged models refuse nothing of the adapter.
        system_prompt: what is trained with, which a Modelfile must hold.

    Raises:
        ValueError: a target that is not one.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ValueError(f"{unknown[0]} is no export target")
    found: list[str] = []
    if "ollama" in targets and system_prompt:
        found += _refused_by_ollama(system_prompt)
    if VLLM_ADAPTER in targets:
        found += _refused_by_vllm(lora if method != "full" else None)
    return found


def _refused_by_ollama(system_prompt: str) -> list[str]:
    try:
        quoted(system_prompt, "the system prompt")
    except ServingError as error:
        return [str(error).removesuffix(".")]
    return []


def _refused_by_vllm(lora: LoraSection | None) -> list[str]:
    if lora is None:
        return [f"{VLLM_ADAPTER}: method: full makes no adapter; export vllm instead"]
    return [f"{VLLM_ADAPTER}: {one}, or export vllm (merged)" for one in _of_adapter(lora)]


def _of_adapter(lora: LoraSection) -> Iterator[str]:
    """Sources, vLLM at 0.32.0: `vllm/lora/peft_helper.py` (_validate_features, validate_legal)
    and `vllm/lora/lora_model.py` (from_local_checkpoint, from_lora_tensors). Patterns of ranks
    and alphas are no reason: `vllm_adapter` takes them into the matrices."""
    if lora.use_dora:
        yield "vLLM refuses DoRA; set lora.use_dora: false"
    for field in ("modules_to_save", "train_embeddings", "trainable_token_indices"):
        if getattr(lora, field):
            yield f"vLLM serves no weights trained whole; leave out lora.{field}"
    rank, largest = saved_rank(lora), VLLM_LORA_RANKS[-1]
    if rank > largest:
        why = f" (saved at rank {rank}: see lora.init_lora_weights)" if rank != lora.r else ""
        yield f"vLLM serves ranks up to {largest}{why}; set a smaller lora.r"
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


def unexportable(config: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
    """One sentence for each target that does not know the base's architecture.

    Args:
        config: the base's config.json.
        targets: those of `TARGETS`.

    Raises:
        ServingError: a GGUF is wanted and the converter is not installed.
    """
    return [
        f"{target}: {problem}"
        for target in targets
        if (problem := _unknown_architecture(config, target)) is not None
    ]


def _unknown_architecture(config: Mapping[str, Any], target: str) -> str | None:
    names = config.get("architectures") or ["(no architecture in its config.json)"]
    name = str(names[0])
    last_version = _VLLM_REMOVED.get(name)
    if target in ("vllm", VLLM_ADAPTER) and last_version is not None:
        return (
            f"vLLM {last_version} was the last to serve {name}; use that version, with this "
            "target left out, or another base"
        )
    if target == VLLM_ADAPTER and name in _VLLM_WITHOUT_LORA:
        return f"vLLM has no adapters for {name}; export vllm (merged)"
    if target in ("gguf", "ollama"):
        text = (config.get("text_config") or {}).get("architectures") or names
        if not set(text[:1]) & converter_architectures():
            return f"llama.cpp's converter does not know {text[0]}; leave {target} out of targets"
    return None


def takes_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether vLLM takes adapters of the input and output embeddings in this architecture."""
    return not set(config.get("architectures") or []) & set(_VLLM_WITHOUT_EMBEDDINGS)


def converter_architectures() -> frozenset[str]:
    """The text models that the installed converter knows, by name in config.json.

    They stand as a literal in its `conversion/__init__.py` (TEXT_MODEL_MAP), which is read and
    not run: it imports torch.

    Raises:
        ServingError: the converter is not installed, or has no such table.
    """
    path = converter_folder() / "conversion" / "__init__.py"
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP":
            assert node.value is not None
            return frozenset(ast.literal_eval(node.value))
    raise ServingError(f"{path}: no table of text models. Install the converter again.")
