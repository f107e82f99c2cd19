"""Real architectures, tiny and random, with every kind of adapter: merged == base + adapter.

The adapters are PEFT's own, also those that `sft` would not train on a tied base.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from architecture_cases import (
    ARCHITECTURES,
    add_sentencepiece,
    add_tokenizer,
    save_random,
)
from luthier.models.loading import load_model
from luthier.models.merging import merge
from luthier.models.parity import max_logit_difference, probe_logits
from luthier.serving.converter import convert
from luthier.serving.llama_server import LlamaServer
from luthier.store.artifact import Workspace

ROWS = [[1, 9, 98, 68, 33], [1, 20, 31, 98, 28, 7, 111, 4]]
MAX_DIFFERENCE = 1e-4
ATTENTION = {"default": ["q_proj", "o_proj"], "phi3": ["qkv_proj", "o_proj"]}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {r"layers.0.*o_proj": 2, "down_proj": 6},
    "alpha_pattern": {r"layers.1.*o_proj": 32},
}
# Options of PEFT's LoraConfig; "tied": whether the base's head is its embeddings; "more": targets
# beside the attention's.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rslora, patterns": {"target_modules": "all-linear", "use_rslora": True, **PATTERNS},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "embeddings and head": {"tied": False, "more": ["embed_tokens", "lm_head"]},
    "embeddings and head, dora": {
        "tied": False,
        "more": ["embed_tokens", "lm_head"],
        "use_dora": True,
    },
    "modules to save": {"tied": False, "modules_to_save": ["model.norm", "lm_head"]},
    "tied, embeddings whole": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied, lora on both": {"more": ["embed_tokens"], "ensure_weight_tying": True},
    "tied, lora on the embeddings": {"more": ["embed_tokens"]},
    "tied, lora on the head": {"more": ["lm_head"]},
    "tied, tokens": {"trainable_token_indices": [9, 33]},
}
# Gemma 3 scales its embeddings, the others do not.
ONLY_FOR = {
    "embeddings and head, dora": ("llama", "gemma3_text"),
    "tied, lora on both": ("llama", "gemma3_text"),
    "tied, lora on the embeddings": ("llama", "gemma3_text"),
}
STAYS_TIED = {"tied, embeddings whole", "tied, lora on both", "tied, tokens"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """By architecture, and whether its head is tied."""
    return {
        (name, tied): save_random(
            tmp_path_factory.mktemp(name), name, tie_word_embeddings=tied, vocab_size=128
        )
        for name in ARCHITECTURES
        for tied in (True, False)
    }


def adapter_of(base: Path, options: dict[str, Any], folder: Path) -> list[torch.Tensor]:
    """Save a random adapter; the logits of the model that it was saved from."""
    from peft import LoraConfig, get_peft_model

    model = load_model(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied modules, which are what is tested
        adapted: Any = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **options)
        )
        torch.manual_seed(7)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.eval()
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return probe_logits(adapted, ROWS)


def options_of(architecture: str, kind: str) -> dict[str, Any]:
    options = dict(KINDS[kind])
    options.pop("tied", None)
    attention = ATTENTION.get(architecture, ATTENTION["default"])
    return {"target_modules": attention + options.pop("more", [])} | options


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(a, kind) for a in ARCHITECTURES for kind in KINDS if a in ONLY_FOR.get(kind, ARCHITECTURES)],
)
def test_merged_is_base_and_adapter(
    architecture: str, kind: str, bases: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    base, adapter, merged = (
        bases[architecture, KINDS[kind].get("tied", True)],
        tmp_path / "adapter",
        tmp_path / "merged",
    )
    merged.mkdir()
    wanted = adapter_of(base, options_of(architecture, kind), adapter)
    report = merge(base, adapter, merged)
    found = load_model(merged)
    assert max_logit_difference(wanted, probe_logits(found, ROWS)) <= MAX_DIFFERENCE
    assert max_logit_difference(probe_logits(load_model(base), ROWS), wanted) > 0.01
    assert report.relative_delta_error < 1e-5
    is_tied = found.get_input_embeddings().weight is found.get_output_embeddings().weight
    assert is_tied == (
        kind in STAYS_TIED or (KINDS[kind].get("tied", True) and "tied" not in kind)
    )
    check_shards(base, merged)


def check_shards(base: Path, merged: Path) -> None:
    """Same files as the base's, and the index says what is in which."""
    names = sorted(path.name for path in base.iterdir())
    assert sorted(path.name for path in merged.iterdir()) == names
    index = json.loads((merged / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(merged.glob("*.safetensors"))
    assert len(files) > 2
    held, size = {}, 0
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            held |= dict.fromkeys(tensors.keys(), path.name)
            size += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_gguf_agrees(
    architecture: str, smol_tokenizer_dir: Path, tmp_path: Path, workspace: Workspace
) -> None:
    """Merged, cast to float16, converted and served by llama.cpp: what it says and how sure it is
    are transformers' on the same weights, and not the base's."""
    is_bpe = architecture in ("llama", "qwen3")
    base = save_random(tmp_path / "base", architecture, vocab_size=49152 if is_bpe else 320)
    if is_bpe:
        add_tokenizer(base, smol_tokenizer_dir)
    else:
        add_sentencepiece(base, 320)
    adapter_of(base, {"target_modules": "all-linear"}, tmp_path / "adapter")
    merged = tmp_path / "merged"
    merged.mkdir()
    report = merge(base, tmp_path / "adapter", merged, dtype="float16")
    assert report.dtype == "float16"
    gguf = tmp_path / "merged.gguf"
    convert(merged, gguf, quantization="f16", name="tiny", workspace=workspace)
    ours, bases = load_model(merged), load_model(base)
    with LlamaServer(gguf, context_tokens=64) as server:
        served = [server.complete(row, 6) for row in ROWS]
    from_base = 0.0
    for row, reply in zip(ROWS, served, strict=True):
        said = list(reply.token_ids)
        assert said
        found = torch.tensor(reply.token_log_probabilities)
        all_of_ours = log_probabilities(ours, row, said)
        of_ours = all_of_ours[range(len(said)), said]
        assert float((of_ours - found).abs().max()) < 0.02
        assert float((all_of_ours.max(dim=-1).values - of_ours).max()) < 0.02
        of_base = log_probabilities(bases, row, said)[range(len(said)), said]
        from_base = max(from_base, float((of_base - found).abs().max()))
    assert from_base > 0.1


def log_probabilities(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """Of every token of the vocabulary (T, V) at each token of a reply."""
    (logits,) = probe_logits(model, [[*prompt, *reply]])
    return logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
