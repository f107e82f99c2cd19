"""Quantised bases: every setting reaches bitsandbytes, and a manifest rebuilds the same base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from architecture_cases import save_random
from luthier.config import load_config
from luthier.errors import ConfigError, ModelError
from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.models.merging import dequantised_weights
from luthier.models.quantization import (
    DType,
    QuantizationSection,
    bitsandbytes_config,
    dequantised,
    quantised_modules,
    quantization_section,
)
from luthier.models.weights import shards


def error_of(base: Path, value: Any) -> float:
    """How far the quantised weights are from the stored ones, relative."""
    stored = {n: t for _, tensors in shards(base) for n, t in tensors.items()}
    found = dequantised_weights(base, value)
    lost = sum(float((found[n] - stored[n]).square().sum()) for n in found)
    return float((lost / sum(float(stored[n].square().sum()) for n in found)) ** 0.5)


def test_types_differ_as_their_bits_say(tiny_base: Path) -> None:
    """Random normal weights: NF4 is made for them, FP4 is not, int8 has four bits more."""
    errors = {kind: error_of(tiny_base, kind) for kind in ("int8", "nf4", "fp4")}
    assert 0 < errors["int8"] < 0.02 < errors["nf4"] < 0.12 < errors["fp4"] < 0.2, errors


def test_double_quantization_changes_the_weights_a_little(tiny_base: Path) -> None:
    simple = dequantised_weights(tiny_base, {"type": "nf4", "double_quantization": False})
    double = dequantised_weights(tiny_base, {"type": "nf4"})
    name = "model.layers.0.mlp.up_proj.weight"
    difference = float((simple[name] - double[name]).norm() / simple[name].norm())
    assert 0 < difference < 0.01


SETTINGS: list[Any] = [
    {"type": "nf4"},
    {"type": "nf4", "double_quantization": False},
    {"type": "fp4"},
    {"type": "fp4", "double_quantization": False, "storage_dtype": "bfloat16"},
    {"type": "int8"},
]


@pytest.mark.parametrize("stored_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
@pytest.mark.parametrize("value", SETTINGS, ids=str)
def test_one_weight_at_a_time_is_what_a_loaded_model_decodes_to(
    value: Any, architecture: str, dtype: DType, stored_dtype: str, tmp_path: Path
) -> None:
    """Bit for bit, and of the same modules; GPT-2's are stored as (in, out)."""
    base = save_random(tmp_path, architecture, dtype=stored_dtype)
    found = dequantised_weights(base, value, dtype=dtype)
    model = load_model(base, quantization=value, dtype=dtype)
    modules = dict(quantised_modules(model))
    assert list(found) == [f"{name}.weight" for name in modules]
    assert len(found) == len(modules) == {"gemma2": 14, "gpt2": 8}[architecture]
    for name, module in modules.items():
        decoded = dequantised(module).cpu()
        weight = found[f"{name}.weight"]
        assert torch.equal(weight, decoded.T if architecture == "gpt2" else decoded)
        assert torch.equal(weight, found[f"{name}.weight"])


@pytest.mark.parametrize("storage", ["uint8", "float32", "bfloat16"])
def test_storage_dtype_keeps_the_values(storage: str, tiny_base: Path) -> None:
    value = {"type": "nf4", "storage_dtype": storage}
    model = load_model(tiny_base, quantization=value)
    weights = {str(module.weight.dtype) for _, module in quantised_modules(model)}
    assert weights == {f"torch.{storage}"}
    plain = dequantised_weights(tiny_base, "nf4")
    found = dequantised_weights(tiny_base, value)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_compute_dtype_is_the_bases_unless_given() -> None:
    assert bitsandbytes_config("nf4", "float32").bnb_4bit_compute_dtype == torch.float32
    assert bitsandbytes_config("nf4", "bfloat16").bnb_4bit_compute_dtype == torch.bfloat16
    given = {"type": "fp4", "compute_dtype": "float16"}
    assert bitsandbytes_config(given, "float32").bnb_4bit_compute_dtype == torch.float16


def test_a_manifest_rebuilds_the_section() -> None:
    section = QuantizationSection(type="fp4", double_quantization=False, compute_dtype="float32")
    stored = json.loads(json.dumps(section.key_fields()))
    assert quantization_section(stored) == section
    assert quantization_section("nf4") == QuantizationSection()
    with pytest.raises(ModelError, match="'int4' is not one that Luthier knows"):
        quantization_section("int4")


def test_int8_runs_on_this_device(tiny_base: Path) -> None:
    model = load_model(tiny_base, quantization="int8")
    assert {module.weight.dtype for _, module in quantised_modules(model)} == {torch.int8}
    plain = load_model(tiny_base)
    ids = torch.tensor([[1, 9690, 198, 2683, 2]], device=model.device)
    with torch.inference_mode():
        found, wanted = model(ids).logits, plain(ids).logits
    assert 0 < float((found - wanted).abs().max()) < 0.1 * float(wanted.abs().max())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_was_evaluated_trains_as_what_was_not(kind: str, tiny_base: Path) -> None:
    """On a processor with AVX512-BF16 bitsandbytes would repack the weights in the evaluation, and
    nothing would flow back through them."""
    ids = torch.tensor([[1, 9690, 198, 2683, 2]])

    def gradients(*, evaluated: bool) -> dict[str, torch.Tensor]:
        model = attach(load_model(tiny_base, quantization=kind), LoraSection(r=4), seed=3)
        if evaluated:
            with torch.inference_mode():
                model(ids.to(model.device))
        model.train()
        model(ids.to(model.device), labels=ids.to(model.device)).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, after = gradients(evaluated=False), gradients(evaluated=True)
    assert len(plain) == 28
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 0
    assert all(torch.equal(after[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: int4", "must be 'nf4', 'fp4' or 'int8'"),
        ("type: int8, storage_dtype: bfloat16", "type: int8 has no storage_dtype; leave it out"),
        ("type: int8, double_quantization: false", "has no double_quantization"),
    ],
)
def test_contradictions(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nquantization: {{{text}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(path, {"quantization": QuantizationSection})
