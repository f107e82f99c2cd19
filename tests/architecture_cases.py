"""Tiny random models of real architectures, in several shards, with a tokenizer where wanted."""

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# llama.cpp scales attention by the heads' width whatever query_pre_attn_scalar says.
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": {},
}
SHARD_BYTES = 60_000
LICENSE = Path(__file__).parent.parent / "LICENSE"


def save_random(folder: Path, architecture: str, dtype: str = "float32", **changes: Any) -> Path:
    """A model as transformers saves it, random but surer of its tokens than random is."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

    from luthier.models.libraries import quiet_libraries

    quiet_libraries()
    torch.manual_seed(11)
    config = CONFIG_MAPPING[architecture](**SMALL | ARCHITECTURES.get(architecture, {}) | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        table.data.mul_(4.0)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    return folder


def add_sentencepiece(folder: Path, vocabulary_size: int) -> None:
    """A SentencePiece tokenizer with as many tokens."""
    (folder / "tokenizer.model").write_bytes(_sentencepiece(vocabulary_size))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@functools.cache
def _sentencepiece(vocabulary_size: int) -> bytes:
    """Without byte tokens: llama.cpp says nothing of what is no whole character."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LICENSE.read_text("utf-8").splitlines()),
        model_writer=model,
        vocab_size=vocabulary_size,
        model_type="bpe",
        minloglevel=2,
    )
    return model.getvalue()


def add_tokenizer(folder: Path, tokenizer: Path) -> None:
    """The files of a tokenizer folder."""
    for path in tokenizer.iterdir():
        shutil.copy(path, folder / path.name)
