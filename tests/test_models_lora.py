"""The adapter's section, what it means in a model, how it starts, and its files."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pydantic import ValidationError

from luthier.config import load_config
from luthier.errors import ConfigError, ModelError
from luthier.models.adapter_start import lora_layers
from luthier.models.loading import load_model
from luthier.models.lora import (
    LoraSection,
    attach,
    check_method,
    save_adapter,
    trainable_dtypes,
)
from luthier.models.quantization import dequantised
from luthier.models.weights import shards

TRAIN = datasets.Dataset.from_list([{"input_ids": list(range(i, i + 9))} for i in range(3, 60, 3)])
OTHER = datasets.Dataset.from_list([{"input_ids": [i] * 9} for i in range(700, 740)])


def adapted(base: Path, rows: datasets.Dataset = TRAIN, **options: Any) -> Any:
    quantization = options.pop("quantization", None)
    section = LoraSection(**({"r": 4, "alpha": 16} | options))
    model = load_model(base, quantization=quantization)
    return attach(model, section, seed=5, rows=rows, base_folder=base)


def layers(model: Any) -> dict[str, Any]:
    return dict(lora_layers(model))


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("init_lora_weights: pisa", "must be 'default', 'gaussian', 'pissa'"),
        ("init_lora_weights: true", "must be 'default', 'gaussian'"),
        ("target_modules: 3", "lora.target_modules must be text or a list"),
        ("target_modules: [q_proj, 3]", "lora.target_modules[1] must be text"),
        ("target_modules: '('", "'(' is no regular expression"),
        ("rank_pattern: {q_proj: 0}", "has 0 for 'q_proj'; give at least 1"),
        ("rank_pattern: {q_proj: x}", "lora.rank_pattern.q_proj must be"),
        ("loraplus_lr_ratio: 0.5", "lora.loraplus_lr_ratio"),
        (
            "{target_modules: '.*q_proj', layers_to_transform: [0]}",
            "put the layer numbers into the pattern",
        ),
        ("layers_pattern: h", "layers_pattern needs layers_to_transform"),
        ("layers_to_transform: []", "layers_to_transform names no layer"),
        ("pissa_niter: 4", "pissa_niter needs init_lora_weights: pissa"),
        ("{use_dora: true, init_lora_weights: loftq}", "use one of the two"),
        (
            "{train_embeddings: true, trainable_token_indices: [2]}",
            "train_embeddings trains every",
        ),
        ("trainable_token_indices: [-1]", "token ids, from 0"),
        ("trainable_token_indices: [2, 2]", "names a token id twice"),
    ],
)
def test_contradictions_are_said_with_the_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = text if text.startswith("{") else f"{{{text}}}"
    Path("x.yaml").write_text(f"name: x\nlora: {body}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", {"lora": LoraSection})
    assert said in str(caught.value)
    assert "x.yaml:2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_form_of_the_options_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nlora:\n  target_modules: [q_proj, v_proj]\n  exclude_modules: '.*layers.0.*'\n"
        "  rank_pattern: {q_proj: 2}\n  layers_to_transform: [1]\n  init_lora_weights: pissa\n"
        "  pissa_niter: 16\n  loraplus_lr_ratio: 16\n",
        encoding="utf-8",
    )
    section = load_config(path, {"lora": LoraSection}).sections["lora"]
    assert isinstance(section, LoraSection)
    assert section.rank_pattern == {"q_proj": 2}
    assert json.loads(json.dumps(section.key_fields()))["layers_to_transform"] == [1]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_the_base_want_it_unquantised(start: str, tiny_base: Path) -> None:
    section = LoraSection.model_validate({"init_lora_weights": start})
    check_method(section, quantized=False)
    with pytest.raises(ValueError, match="cannot hold exactly; use loftq, eva or default"):
        check_method(section, quantized=True)
    with pytest.raises(ModelError, match=f"init_lora_weights: {start}"):
        adapted(tiny_base, quantization="nf4", init_lora_weights=start)


def test_loftq_wants_a_quantised_base(tiny_base: Path) -> None:
    check_method(LoraSection(init_lora_weights="loftq"), quantized=True)
    with pytest.raises(ModelError, match="this base is not quantised; use default"):
        adapted(tiny_base, init_lora_weights="loftq")


def test_sections_are_frozen_and_know_no_other_start() -> None:
    with pytest.raises(ValidationError):
        LoraSection.model_validate({"init_lora_weights": "corda"})


ALL = {
    f"model.layers.{layer}.{module}"
    for layer in range(2)
    for module in (
        *(f"self_attn.{one}_proj" for one in "qkvo"),
        *(f"mlp.{one}_proj" for one in ("gate", "up", "down")),
    )
}
SELECTIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, ALL),
    ({"target_modules": ["q_proj"]}, {n for n in ALL if n.endswith("q_proj")}),
    ({"target_modules": r".*layers\.1\..*"}, {n for n in ALL if ".1." in n}),
    ({"exclude_modules": ["mlp.up_proj"]}, {n for n in ALL if "up_proj" not in n}),
    ({"exclude_modules": ".*self_attn.*"}, {n for n in ALL if "mlp" in n}),
    ({"layers_to_transform": [1]}, {n for n in ALL if ".1." in n}),
    ({"layers_to_transform": [0], "layers_pattern": "layers"}, {n for n in ALL if ".0." in n}),
]


@pytest.mark.parametrize(("options", "wanted"), SELECTIONS)
def test_selections(options: dict[str, Any], wanted: set[str], tiny_base: Path) -> None:
    assert set(layers(adapted(tiny_base, **options))) == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "query"]}, "target_modules: 'query' matches none.*q_proj"),
        ({"target_modules": "all-linaer"}, "target_modules: 'all-linaer'.*layers.0.self_attn"),
        ({"exclude_modules": ["norm"]}, "exclude_modules: 'norm' matches none.*There are: q_proj"),
        ({"exclude_modules": "q_proj"}, "exclude_modules: 'q_proj'"),
        ({"exclude_modules": ".*"}, "leaves out every module"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern: 'query'.*layers.0.self_attn.q_proj"),
        ({"alpha_pattern": {"layers.7.*": 2}}, "alpha_pattern: 'layers.7"),
        ({"rank_pattern": {"q_proj": 2, "layers.0.*q_proj": 8}}, r"rank_pattern: 'layers\.0"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform: '2' matches none"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_to_transform: '0'"),
        ({"modules_to_save": ["head"]}, "modules_to_save: 'head'.*embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "Set train_embeddings: true instead"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is one matrix for input and output"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens is one matrix"),
        ({"trainable_token_indices": [49152]}, "49152 is no token id; this base has 49152"),
        (
            {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "is trained already",
        ),
        ({"init_lora_weights": "eva", "r": 40}, "Set r to at most 32"),
        ({"init_lora_weights": "eva", "r": 32, "rows": TRAIN.select([0])}, "at least 64 tokens"),
    ],
)
def test_what_matches_nothing_is_an_error(
    options: dict[str, Any], said: str, tiny_base: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        adapted(tiny_base, **options)


def test_modules_to_save_means_whole_names(tiny_base: Path) -> None:
    """PEFT alone would take "norm" for the end of "input_layernorm" too."""
    model = adapted(tiny_base, modules_to_save=["norm"])
    wholes = [name for name in trained(model) if "lora_" not in name]
    assert wholes == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_a_quantised_module_is_not_trained_whole(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="q_proj is quantised in this base"):
        adapted(tiny_base, quantization="nf4", modules_to_save=["layers.0.self_attn.q_proj"])


def test_ranks_and_scales(tiny_base: Path) -> None:
    options = {"rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 64}}
    found = layers(adapted(tiny_base, dropout=0.25, **options))
    at = "model.layers.{}.self_attn.{}_proj"
    shapes = {n: layer.lora_A["default"].weight.shape[0] for n, layer in found.items()}
    assert {n for n, rank in shapes.items() if rank != 4} == {at.format(0, "q")}
    assert found[at.format(0, "q")].scaling["default"] == 8
    assert found[at.format(1, "v")].scaling["default"] == 16
    assert found[at.format(1, "k")].scaling["default"] == 4
    assert found[at.format(1, "k")].lora_dropout["default"].p == 0.25
    stable = layers(adapted(tiny_base, use_rslora=True, **options))
    assert stable[at.format(1, "k")].scaling["default"] == 8


STARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, fast": {"init_lora_weights": "pissa", "pissa_niter": 2},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
    "loftq": {"init_lora_weights": "loftq", "quantization": "nf4"},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("options", STARTS.values(), ids=STARTS)
def test_a_resumed_run_starts_from_the_same_adapter(
    options: dict[str, Any], tiny_base: Path
) -> None:
    """Weights of the adapter and of the base under it, and what was taken out of the base."""
    one = adapted(tiny_base, **options)
    torch.randn(100)
    other = adapted(tiny_base, **options)
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(trainable_dtypes(one)) == {"float32"}


def test_starts_differ(tiny_base: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight"
    found = [trained(adapted(tiny_base, **options))[name] for options in STARTS.values()]
    different = found[:-1]  # DoRA starts its matrices as LoRA does
    assert all(
        a.shape != b.shape or not torch.allclose(a, b)
        for i, a in enumerate(different)
        for b in different[:i]
    )


def test_eva_looks_at_the_rows_and_draws_them_by_seed(tiny_base: Path) -> None:
    options: dict[str, Any] = {"init_lora_weights": "eva", "target_modules": ["q_proj"]}
    one = trained(adapted(tiny_base, **options))
    other = trained(adapted(tiny_base, rows=OTHER, **options))
    assert one.keys() != other.keys() or any(
        one[n].shape != other[n].shape or not torch.allclose(one[n], other[n]) for n in one
    )


def test_loftq_brings_the_quantised_base_nearer_to_the_stored_one(tiny_base: Path) -> None:
    """With the scale: PEFT's own correction is alpha / r times too large."""
    stored = {n: t for _, tensors in shards(tiny_base) for n, t in tensors.items()}
    model = adapted(tiny_base, init_lora_weights="loftq", quantization="nf4")
    for name, layer in lora_layers(model):
        base = dequantised(layer.get_base_layer())
        lost = stored[f"{name}.weight"] - base
        best = torch.linalg.svdvals(lost)[4:].square().sum().sqrt()
        left = (lost - layer.get_delta_weight("default").detach()).norm()
        assert float(left) == pytest.approx(float(best), rel=1e-4)


def test_saved_files_are_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    """Of an adapter with everything: sets, patterns, whole modules, a start that is converted."""
    options: dict[str, Any] = {
        "init_lora_weights": "pissa",
        "train_embeddings": True,
        "rank_pattern": {"q_proj": 2},
        "exclude_modules": ["up_proj", "gate_proj"],
        "use_dora": True,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_adapter(adapted(tiny_base, **options), tmp_path / name, "tiny")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes()
        assert str(tiny_base).encode() not in content
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 8
    assert config["rank_pattern"] == config["alpha_pattern"] == {"q_proj": 4}
    assert config["exclude_modules"] == ["gate_proj", "up_proj"]
    assert len(list((tmp_path / "one").iterdir())) == 2
