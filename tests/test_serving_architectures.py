"""Architectures, tokenizer kinds and storage that GGUF conversion has to take: all agree."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import TOKENIZER_FILES
from luthier.models.loading import load_model
from luthier.serving.converter import GGUFType, convert
from luthier.serving.gguf_file import tensor_types
from luthier.serving.gguf_logits import gguf_logits
from luthier.store.artifact import Workspace

PIECES = 400  # of the SentencePiece model; the models' tables are longer, as many real ones are


@dataclass(frozen=True)
class Case:
    model_type: str
    architecture: str
    dtype: torch.dtype
    gguf_type: GGUFType
    pieces: bool = False
    tied: bool = False
    shards: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


# llama.cpp scales queries by the head's width, whatever query_pre_attn_scalar says
GEMMA = {"query_pre_attn_scalar": 16}
CASES = [
    Case("llama", "llama", torch.bfloat16, "bf16", tied=True, shards=True),
    Case("mistral", "llama", torch.float16, "f16", pieces=True),
    # transformers gives every qwen2 Qwen's own pre-tokenizer, so SmolLM2's tokens are none for it
    Case("qwen2", "qwen2", torch.float32, "f16", pieces=True),
    Case("qwen3", "qwen3", torch.float32, "f16", tied=True, fields={"head_dim": 32}),
    Case("phi3", "phi3", torch.bfloat16, "f16", pieces=True, shards=True),
    Case("gemma2", "gemma2", torch.float32, "f16", pieces=True, tied=True, fields=GEMMA),
    Case("gemma3_text", "gemma3", torch.float32, "f16", pieces=True, tied=True, fields=GEMMA),
]


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece tokenizer of real text: tokenizer.model and its configuration."""
    folder = tmp_path_factory.mktemp("pieces")
    text = Path(__file__).parent.parent / "README.md"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=0.98,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_id=0,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


def write_model(case: Case, folder: Path, tokenizer: Path, names: tuple[str, ...]) -> None:
    sizes = {
        "vocab_size": PIECES + 20 if case.pieces else 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": case.tied,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(case.model_type, **(sizes | case.fields))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(case.dtype).save_pretrained(folder, max_shard_size="200KB" if case.shards else "5GB")
    for name in names:
        shutil.copy(tokenizer / name, folder / name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_llama_cpp_agrees_with_transformers(
    case: Case,
    smol_tokenizer_dir: Path,
    pieces_folder: Path,
    tmp_path: Path,
    workspace: Workspace,
) -> None:
    folder, target = tmp_path / "model", tmp_path / "model.gguf"
    if case.pieces:
        names = ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
        write_model(case, folder, pieces_folder, names)
    else:
        write_model(case, folder, smol_tokenizer_dir, TOKENIZER_FILES)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == case.shards
    header = convert(folder, target, quantization=case.gguf_type, name="m", workspace=workspace)
    assert header.metadata["general.architecture"] == case.architecture
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2
    assert ("output.weight" in header.tensors) == (not case.tied)
    assert set(tensor_types(target)) == {case.gguf_type, "f32"}
    row = [1, *range(5, 290, 9)]
    (served_TV,) = gguf_logits(target, [row])
    with torch.inference_mode():
        logits_TV = load_model(folder)(input_ids=torch.tensor([row])).logits[0].numpy()
    # Activations are rounded to 11 or 8 bits before each product
    bits = 11 if case.gguf_type == "f16" else 8
    scale = np.abs(logits_TV).max()
    np.testing.assert_allclose(served_TV, logits_TV, atol=8 * 2.0**-bits * scale)
