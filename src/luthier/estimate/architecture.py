"""A model's shape from its `config.json`: parameters by part, linear modules by name. No weights.

H hidden size, I intermediate size, V vocabulary, L layers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from luthier.errors import ModelError
from luthier.estimate.families import FAMILIES, REFUSED_FIELDS, Family

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class LinearModule:
    """A linear module of the model: `name` is its full path, as PEFT matches it."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weight and bias elements."""
        return self.inputs * self.outputs + self.outputs * self.bias

    @property
    def suffix(self) -> str:
        """The last part of the name: q_proj, down_proj, ..."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Vision:
    """A SigLIP tower and its projector: loaded with the model, idle when training on text."""

    layers: int
    hidden: int
    intermediate: int
    image_size: int
    patch_size: int


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model of Llama's kind. Sizes in elements."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    query_bias: bool
    output_bias: bool
    mlp_bias: bool
    norms_per_layer: int
    query_norms: bool
    fused: bool
    sliding_layers: int
    """Layers that attend to the last `sliding_window` tokens only."""
    sliding_window: int | None
    attention_softcap: bool
    """Soft-capped scores: transformers then has eager attention only."""
    logit_softcap: bool
    max_position_tokens: int | None
    stored_dtype: str
    """Of the weights' file, as the config says."""
    vision: Vision | None
    notes: tuple[str, ...] = ()
    """What the prediction is less sure of, for people."""

    @property
    def query_size(self) -> int:
        """Elements of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Elements of all key heads of a token (values: the same)."""
        return self.key_value_heads * self.head_dim

    @cached_property
    def layer_modules(self) -> tuple[LinearModule, ...]:
        """The linear modules of one decoder layer, names without the layer's prefix."""
        H, I, Q, KV = self.hidden, self.intermediate, self.query_size, self.key_value_size  # noqa: E741
        if self.fused:
            return (
                LinearModule("self_attn.qkv_proj", H, Q + 2 * KV),
                LinearModule("self_attn.o_proj", Q, H),
                LinearModule("mlp.gate_up_proj", H, 2 * I),
                LinearModule("mlp.down_proj", I, H),
            )
        return (
            LinearModule("self_attn.q_proj", H, Q, self.query_bias),
            LinearModule("self_attn.k_proj", H, KV, self.query_bias),
            LinearModule("self_attn.v_proj", H, KV, self.query_bias),
            LinearModule("self_attn.o_proj", Q, H, self.output_bias),
            LinearModule("mlp.gate_proj", H, I, self.mlp_bias),
            LinearModule("mlp.up_proj", H, I, self.mlp_bias),
            LinearModule("mlp.down_proj", I, H, self.mlp_bias),
        )

    @cached_property
    def modules(self) -> tuple[LinearModule, ...]:
        """Every linear module but the head, as `all-linear` of PEFT means it."""
        return tuple(self._modules())

    def _modules(self) -> Iterator[LinearModule]:
        prefix = "model.language_model.layers" if self.vision else "model.layers"
        for layer in range(self.layers):
            for module in self.layer_modules:
                yield _renamed(module, f"{prefix}.{layer}.{module.name}")
        if self.vision:
            yield from _vision_modules(self.vision)

    @property
    def embedding_parameters(self) -> int:
        """V x H."""
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """V x H, 0 when it is the embedding."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Of all decoder layers' linear modules: what 4 bits shrink."""
        return self.layers * sum(module.parameters for module in self.layer_modules)

    @property
    def norm_parameters(self) -> int:
        """Of all RMSNorms of the decoder."""
        per_layer = self.norms_per_layer * self.hidden + 2 * self.head_dim * self.query_norms
        return self.layers * per_layer + self.hidden

    @property
    def vision_parameters(self) -> int:
        """Of the image tower and its projector."""
        return _vision_parameters(self.vision, self.hidden) if self.vision else 0

    @property
    def parameters(self) -> int:
        """All of the model, tied weights once."""
        return (
            self.embedding_parameters
            + self.head_parameters
            + self.linear_parameters
            + self.norm_parameters
            + self.vision_parameters
        )


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a model's `config.json` describes.

    Raises:
        ModelError: a kind of model whose memory the formulas here do not describe (experts,
            encoders, state spaces), or a field is missing.
    """
    text = dict(config.get("text_config") or config)
    model_type = str(text.get("model_type") or config.get("model_type"))
    family = FAMILIES.get(model_type)
    _refuse(text, model_type)
    values = {**(family or Family()).defaults, **_present(config, text)}
    notes: tuple[str, ...] = ()
    if family is None:
        notes = (f"model_type {model_type} is not known here: predicted as if it were a Llama",)
    return _build(values, model_type, family or Family(), notes, _vision(config))


def _present(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that say something; of a nested config some of the outer ones count."""
    found = {name: value for name, value in text.items() if value is not None}
    outer = ("tie_word_embeddings", "dtype", "torch_dtype")
    return found | {name: config[name] for name in outer if config.get(name) is not None}


def _refuse(text: Mapping[str, Any], model_type: str) -> None:
    foreign = [name for name in REFUSED_FIELDS if text.get(name)]
    if foreign:
        raise ModelError(
            f"config.json: cannot predict for model_type {model_type} (it has {foreign[0]}): only "
            "dense decoder models of Llama's kind are known here. Train without the prediction."
        )


def _build(
    values: Mapping[str, Any],
    model_type: str,
    family: Family,
    notes: tuple[str, ...],
    vision: Vision | None,
) -> Architecture:
    missing = [name for name in (*_NEEDED, "vocab_size") if name not in values]
    if missing:
        raise ModelError(
            f"config.json: cannot predict for model_type {model_type}: {', '.join(missing)} is "
            "missing. Give the config.json of a decoder model as its authors published it."
        )
    heads = int(values["num_attention_heads"])
    attention_bias = bool(values.get("attention_bias", False)) and family.biases
    layers = int(values["num_hidden_layers"])
    return Architecture(
        model_type=model_type,
        layers=layers,
        hidden=int(values["hidden_size"]),
        intermediate=int(values["intermediate_size"]),
        heads=heads,
        key_value_heads=int(values.get("num_key_value_heads", heads)),
        head_dim=int(values.get("head_dim", values["hidden_size"] // heads)),
        vocabulary=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", False)),
        query_bias=family.query_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(values.get("mlp_bias", False)) and family.biases,
        norms_per_layer=family.norms_per_layer,
        query_norms=family.query_norms,
        fused=family.fused,
        sliding_layers=_sliding_layers(values, model_type, layers),
        sliding_window=values.get("sliding_window"),
        attention_softcap=model_type == "gemma2" and "attn_logit_softcapping" in values,
        logit_softcap="final_logit_softcapping" in values,
        max_position_tokens=values.get("max_position_embeddings"),
        stored_dtype=str(values.get("dtype") or values.get("torch_dtype", "float32")),
        vision=vision,
        notes=notes,
    )


def _sliding_layers(values: Mapping[str, Any], model_type: str, layers: int) -> int:
    """How many layers have a sliding window (Gemma 2: every other, Gemma 3: five of six)."""
    kinds = values.get("layer_types")
    if kinds:
        return sum(kind == "sliding_attention" for kind in kinds)
    if not values.get("sliding_window") or values.get("use_sliding_window") is False:
        return 0
    match model_type:
        case "gemma2":
            return (layers + 1) // 2
        case "gemma3_text":
            return layers - layers // int(values.get("sliding_window_pattern", 6))
        case "mistral" | "phi3":
            return layers
        case _:
            return 0


def _vision(config: Mapping[str, Any]) -> Vision | None:
    """The image tower of Gemma 3; others are refused where they would be loaded."""
    vision = config.get("vision_config")
    if not vision:
        return None
    if config.get("model_type") != "gemma3":
        raise ModelError(
            f"config.json: cannot predict for model_type {config.get('model_type')}: of models "
            "with an image tower only gemma3 is known here. Train without the prediction."
        )
    return Vision(
        int(vision["num_hidden_layers"]),
        int(vision["hidden_size"]),
        int(vision["intermediate_size"]),
        int(vision["image_size"]),
        int(vision["patch_size"]),
    )


def _vision_modules(vision: Vision) -> Iterator[LinearModule]:
    H = vision.hidden
    for layer in range(vision.layers):
        prefix = f"model.vision_tower.encoder.layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield LinearModule(f"{prefix}.self_attn.{name}", H, H, bias=True)
        yield LinearModule(f"{prefix}.mlp.fc1", H, vision.intermediate, bias=True)
        yield LinearModule(f"{prefix}.mlp.fc2", vision.intermediate, H, bias=True)


def _vision_parameters(vision: Vision, text_hidden: int) -> int:
    """SigLIP without its head: patches and positions, layers with two LayerNorms, a last one;
    the projector is one matrix and one norm."""
    H = vision.hidden
    patches = (vision.image_size // vision.patch_size) ** 2
    embeddings = 3 * vision.patch_size**2 * H + H + patches * H
    layers = sum(module.parameters for module in _vision_modules(vision)) + vision.layers * 4 * H
    return embeddings + layers + 2 * H + H * text_hidden + H


def _renamed(module: LinearModule, name: str) -> LinearModule:
    return LinearModule(name, module.inputs, module.outputs, module.bias)


def matches(module: LinearModule, target: str | list[str] | tuple[str, ...]) -> bool:
    """Whether PEFT would adapt it: `all-linear`, a regular expression over the whole name, or a
    list of last parts of names (peft 0.21 `tuners/tuners_utils.py` `check_target_module_exists`).
    """
    if isinstance(target, str):
        return target == "all-linear" or re.fullmatch(target, module.name) is not None
    return any(module.name == name or module.name.endswith(f".{name}") for name in target)
