"""Whether an adapter moves (F15), how fast its parts learn, and their numerics (F14)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.models.full_tuning import prepare_full
from luthier.models.loading import load_model
from luthier.models.lora import (
    LoraSection,
    attach,
    moved_share,
    output_matrices,
    parameter_groups,
    trainable_dtypes,
)
from luthier.models.quantization import quantised_modules


def adapted(base: Path, **options: Any) -> Any:
    quantization = options.pop("quantization", None)
    model = load_model(base, quantization=quantization)
    return attach(model, LoraSection(r=4, alpha=16, **options), seed=5, base_folder=base)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq", "quantization": "nf4"},
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
        {"train_embeddings": True},
    ],
)
def test_moved_share(options: dict[str, Any], tiny_base: Path) -> None:
    """F15: nothing moved is 0, all moved is 1, half of B is near a half; NaN is 0."""
    model = adapted(tiny_base, **options)
    before = output_matrices(model)
    assert moved_share(before, output_matrices(model)) == 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    after = output_matrices(model)
    assert moved_share(before, after) > 0.999
    parts = [name for name in after if "lora_B" in name]
    assert parts
    for name in parts:
        after[name][: len(after[name]) // 2] = before[name][: len(after[name]) // 2]
    assert 0.45 < moved_share({n: before[n] for n in parts}, {n: after[n] for n in parts}) < 0.55
    after[parts[0]][0, 0] = float("nan")
    assert moved_share(before, after) == 0.0


def test_embeddings_of_unseen_tokens_may_stay(tiny_base: Path) -> None:
    model = adapted(tiny_base, trainable_token_indices=[3, 4, 5])
    before = output_matrices(model)
    rows = [p for n, p in model.named_parameters() if "trainable_tokens_delta" in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "lora" in n]
    for parameter in others:
        parameter.data += 0.01
    unmoved = moved_share(before, output_matrices(model))
    assert unmoved < 1.0
    rows[0].data[1] += 0.01
    assert moved_share(before, output_matrices(model)) == 1.0


def test_moved_share_of_full_fine_tuning(tiny_base: Path) -> None:
    model = prepare_full(load_model(tiny_base))
    before = output_matrices(model)
    assert sum(tensor.numel() for tensor in before.values()) < 500_000
    assert moved_share(before, output_matrices(model)) == 0.0
    for name, parameter in model.named_parameters():
        if "mlp" not in name:
            parameter.data += 0.01
    assert 0.5 < moved_share(before, output_matrices(model)) < 0.95
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data += 0.01
    assert moved_share(before, output_matrices(model)) > 0.999


def test_loraplus_groups(tiny_base: Path) -> None:
    model = adapted(tiny_base, use_dora=True, train_embeddings=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = parameter_groups(model, 1e-3, 0.1, None)
    assert {group["lr"] for group in plain} == {1e-3}
    assert sorted(group["weight_decay"] for group in plain) == [0.0, 0.1]
    fast: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(model, 1e-3, 0.1, 16.0):
        for parameter in group["params"]:
            fast[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert fast.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum("magnitude" in name for name in fast) == 14
    for name, found in fast.items():
        is_fast = "lora_B" in name or "magnitude" in name
        decay = 0.0 if "magnitude" in name else 0.1
        assert found == (16e-3 if is_fast else 1e-3, decay), name


def test_loraplus_is_pefts(tiny_base: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    model = adapted(tiny_base)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.1
    )
    wanted = {
        id(p): (g["lr"], g["weight_decay"]) for g in theirs.param_groups for p in g["params"]
    }
    groups = parameter_groups(model, 1e-3, 0.1, 4.0)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == wanted


@pytest.mark.parametrize("options", [{"train_embeddings": True}, {"modules_to_save": ["norm"]}])
def test_float32_modules_in_a_16_bit_base(options: dict[str, Any], tiny_base: Path) -> None:
    """F14: what is trained is float32, and the model still runs and learns."""
    section = LoraSection(r=2, target_modules=["q_proj"], **options)
    model = attach(load_model(tiny_base, dtype="bfloat16"), section, seed=5)
    assert set(trainable_dtypes(model)) == {"float32"}
    model.train()
    ids = torch.tensor([[1, 9690, 198, 2683, 2]])
    model(input_ids=ids, labels=ids).loss.backward()
    wholes = [p for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert wholes
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in wholes)


def test_quantised_layers_are_found_under_an_adapter(tiny_base: Path) -> None:
    model = adapted(tiny_base, quantization="nf4")
    assert len(list(quantised_modules(model))) == 14
