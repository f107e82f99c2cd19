"""Small random Llamas."""

from typing import Any


def tiny_llama(seed: int, **changes: Any) -> Any:
    """Two layers, SmolLM2's vocabulary and special tokens, tied embeddings; `changes` are fields
    of its LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**fields | changes))
