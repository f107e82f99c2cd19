"""Covered forwards against PEFT's and transformers' own: gradients, fallbacks, what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach, save_adapter
from luthier.training.batches import PaddedCollator
from luthier.training.kernels import slow_down, speed_up
from luthier.training.loss import summed_loss
from training_cases import PREFIX, token_rows

ALL_FUSED = ["14 LoRA layers fused", "5 norms fused", "2 gates fused"]


def adapted(base: Path, *, quantization: str | None = None, **fields: Any) -> torch.nn.Module:
    """A tiny model with an adapter whose B matrices are not zero, in training mode."""
    section = LoraSection.model_validate({"r": 4, "alpha": 12} | fields)
    model: torch.nn.Module = attach(load_model(base, quantization=quantization), section, seed=5)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model.train()


def loss_and_gradients(
    model: torch.nn.Module, rows: int = 6
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = PaddedCollator(2)(token_rows(rows, prefix=PREFIX))
    torch.manual_seed(3)
    loss = summed_loss(model, batch, share_prefix=False)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found


def assert_same_step(model: torch.nn.Module, *, expected_fused: list[str]) -> None:
    expected_loss, expected = loss_and_gradients(model)
    assert speed_up(model) == expected_fused
    loss, found = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dropout": 0.3},
        {"use_rslora": True},
        {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    ],
    ids=["plain", "dropout", "rslora", "ranks"],
)
def test_step_is_pefts(tiny_base: Path, fields: dict[str, Any]) -> None:
    """With dropout too, mask by mask: PEFT draws in the same order."""
    assert_same_step(adapted(tiny_base, **fields), expected_fused=ALL_FUSED)


def test_shared_prefix_and_its_cache(tiny_base: Path) -> None:
    model, batch = adapted(tiny_base), PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    _, expected = loss_and_gradients(model)
    speed_up(model)
    summed_loss(model, batch, share_prefix=True).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(tiny_base: Path, use_reentrant: bool) -> None:
    model: Any = adapted(tiny_base)
    _, expected = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    speed_up(model)
    _, found = loss_and_gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_only_some_layers_adapted(tiny_base: Path) -> None:
    """v alone of q, k and v; down without gate and up."""
    model = adapted(tiny_base, target_modules=["v_proj", "down_proj"])
    assert_same_step(
        model, expected_fused=["4 LoRA layers fused", "5 norms fused", "2 gates fused"]
    )


def test_dora_keeps_its_own_forward(tiny_base: Path) -> None:
    kept = "14 LoRA layers as they are: DoraLinearVariant"
    model = adapted(tiny_base, use_dora=True)
    assert_same_step(model, expected_fused=[kept, *ALL_FUSED[1:]])


def test_quantised_layers_keep_their_own_forward(tiny_base: Path) -> None:
    kept = "14 LoRA layers as they are: Linear4bit on Linear4bit"
    model = adapted(tiny_base, quantization="nf4")
    assert_same_step(model, expected_fused=[kept, *ALL_FUSED[1:]])


def test_bfloat16_base_has_pefts_rounding(tiny_base: Path) -> None:
    section = LoraSection(r=4, alpha=8)
    model = attach(load_model(tiny_base, dtype="bfloat16"), section, seed=5).train()
    layer: Any = model.get_base_model().model.layers[0].self_attn.q_proj  # type: ignore[operator]
    layer.lora_B["default"].weight.data.normal_(std=0.05)
    x = torch.randn(3, 7, 64, dtype=torch.bfloat16, requires_grad=True)
    results = []
    for cover in (False, True):
        if cover:
            speed_up(model)
        y = layer(x)
        y.float().square().sum().backward()
        results.append((y.detach(), x.grad, layer.lora_A["default"].weight.grad.clone()))
        x.grad = None
        model.zero_grad()
    for found, expected in zip(*reversed(results), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_a_norm_of_another_formula_keeps_its_own_forward(tiny_base: Path) -> None:
    """Gemma's norm multiplies by 1 + weight; its class has the same attributes."""
    model: Any = adapted(tiny_base)
    norms = [module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm"]

    class OnePlusRMSNorm(type(norms[0])):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = super().forward(x)
            return result + result / self.weight

    norms[0].__class__ = OnePlusRMSNorm
    assert speed_up(model) == [ALL_FUSED[0], "4 norms fused", ALL_FUSED[2]]


def test_a_gate_of_another_activation_keeps_its_own_forward(tiny_base: Path) -> None:
    model: Any = adapted(tiny_base)
    blocks = [module for module in model.modules() if hasattr(module, "act_fn")]
    blocks[0].act_fn = torch.nn.GELU()
    assert speed_up(model) == [*ALL_FUSED[:2], "1 gates fused"]


def test_the_rest_of_peft_still_works(tiny_base: Path) -> None:
    """Adapter off, merged, evaluation: PEFT's forward. Uncovered, nothing is left behind."""
    model: Any = adapted(tiny_base).eval()
    ids = torch.arange(100, 110)[None]

    def logits() -> list[torch.Tensor]:
        with torch.no_grad():
            found = [model(input_ids=ids).logits]
        with model.disable_adapter():
            found.append(model(input_ids=ids).logits.detach())
        model.merge_adapter()
        found.append(model(input_ids=ids).logits.detach())
        model.unmerge_adapter()
        return found

    expected = logits()
    speed_up(model)
    for found, wanted in zip(logits(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    slow_down(model)
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(logits()[0], expected[0])


def test_a_layer_called_alone_gets_no_other_tensors_output(tiny_base: Path) -> None:
    model: Any = adapted(tiny_base)
    attention = model.get_base_model().model.layers[0].self_attn
    first, second = torch.randn(2, 1, 5, 64, requires_grad=True)
    expected = [attention.k_proj(first), attention.k_proj(second)]
    speed_up(model)
    attention.q_proj(first)
    torch.testing.assert_close(attention.k_proj(second), expected[1])
    torch.testing.assert_close(attention.k_proj(first), expected[0])


def test_saved_adapter_is_the_same_file(tiny_base: Path, tmp_path: Path) -> None:
    model: Any = adapted(tiny_base)
    for name in ("plain", "covered"):
        (tmp_path / name).mkdir()
        save_adapter(model, tmp_path / name, "tiny")
        speed_up(model)
    plain, covered = (
        tmp_path / name / "adapter_model.safetensors" for name in ("plain", "covered")
    )
    assert plain.read_bytes() == covered.read_bytes()
    assert len(load_file(plain)) == 28


def test_less_is_kept_for_the_backward_pass(tiny_base: Path) -> None:
    """What autograd holds between the passes: at most four fifths, in so small a model."""
    model = adapted(tiny_base)
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))

    def kept_bytes() -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = summed_loss(model, batch, share_prefix=False)
        loss.backward()
        # The logits are the same in both; tensors above a megabyte are theirs here.
        return sum(size for size in storages.values() if size < 1_000_000)

    plain = kept_bytes()
    speed_up(model)
    assert kept_bytes() < plain * 0.8
