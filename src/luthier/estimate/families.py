"""What transformers' classes of decoder models take for granted where `config.json` is silent.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23; tests build every one of
these families on the meta device and compare the counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """How the layers of one `model_type` differ from Llama's."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of `config.json` fields that may be missing there."""
    query_bias: bool = False
    """Biases on q, k and v always, whatever `attention_bias` says."""
    norms_per_layer: int = 2
    query_norms: bool = False
    """RMSNorm of every query and key head."""
    fused: bool = False
    """One matrix for q, k and v, one for gate and up."""
    biases: bool = True
    """Whether `attention_bias` and `mlp_bias` are read at all."""


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "num_key_value_heads": 4}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(defaults={"num_key_value_heads": 8}, biases=False),
    "qwen2": Family(query_bias=True, biases=False),
    "qwen3": Family(defaults={"head_dim": 128}, query_norms=True),
    "smollm3": Family(defaults={"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "gemma": Family(defaults={**_GEMMA, "num_key_value_heads": 16}),
    "gemma2": Family(defaults=_GEMMA, norms_per_layer=4),
    "gemma3_text": Family(
        defaults={**_GEMMA, "num_attention_heads": 8, "vocab_size": 262_208},
        norms_per_layer=4,
        query_norms=True,
    ),
    "phi3": Family(fused=True, biases=False),
}

# Not one dense stack of attention and MLP: the formulas here do not hold.
REFUSED_FIELDS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "ssm_cfg",
    "state_size", "mamba_d_state", "kv_lora_rank", "n_embd", "d_model", "is_encoder_decoder",
)  # fmt: skip
