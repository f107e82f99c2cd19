"""Predicted memory against the bytes that torch keeps alive in a real step of small models."""

from dataclasses import replace

import pytest
import torch

from estimate_cases import adapted, peak_of_step, real, small_config
from luthier.errors import ConfigError
from luthier.estimate.activations import math_attention
from luthier.estimate.architecture import read_architecture
from luthier.estimate.fitting import find_fit, largest_batch
from luthier.estimate.hardware import GIB, GPUS, by_device_name, cpu, find_hardware
from luthier.estimate.memory import predict_memory
from luthier.estimate.shape import AdapterShape, TrainingShape
from luthier.training.kernels import speed_up

CPU = cpu(16 * GIB, 2, maps_tensors=True)
STEP = TrainingShape(
    adapter=AdapterShape(r=8),
    optimizer="sgd",
    rows=2,
    tokens_per_row=96,
    supervised_tokens_per_row=4,
)
FULL = replace(STEP, method="full", adapter=None)
BF16 = replace(STEP, dtype="bfloat16")
ALL_SUPERVISED = {"supervised_tokens_per_row": 95}


def in_flight(config: dict[str, object], shape: TrainingShape) -> int:
    """All that is predicted but weights, adapter and what is outside torch."""
    found = predict_memory(read_architecture(config), shape, CPU)
    return found.allocated - found.weights - found.adapter


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Llama-3.2-1B-Instruct", STEP),
        ("Llama-3.2-1B-Instruct", replace(STEP, **ALL_SUPERVISED)),
        ("Llama-3.2-1B-Instruct", replace(STEP, gradient_checkpointing=True)),
        ("Llama-3.2-1B-Instruct", replace(STEP, attention="eager")),
        ("Llama-3.2-1B-Instruct", replace(STEP, adapter=AdapterShape(r=8, dropout=0.1))),
        ("Llama-3.2-1B-Instruct", replace(STEP, rows=1, tokens_per_row=192, masked=True)),
        ("Llama-3.2-1B-Instruct", BF16),
        ("Llama-3.2-1B-Instruct", replace(BF16, gradient_checkpointing=True)),
        ("Llama-3.2-1B-Instruct", replace(BF16, attention="eager")),
        ("Llama-3.2-1B-Instruct", FULL),
        ("Llama-3.2-1B-Instruct", replace(FULL, **ALL_SUPERVISED)),
        ("Llama-3.2-1B-Instruct", replace(FULL, gradient_checkpointing=True)),
        ("Llama-3.2-1B-Instruct", replace(STEP, rows=8, shared_prefix_tokens=64)),
        (
            "Llama-3.2-1B-Instruct",
            replace(STEP, adapter=AdapterShape(target_modules=("q_proj", "v_proj"))),
        ),
        ("Qwen2.5-0.5B-Instruct", STEP),
        ("Qwen3-0.6B", STEP),
        ("gemma-2-2b-it", STEP),
        ("gemma-2-2b-it", replace(STEP, gradient_checkpointing=True)),
        ("gemma-3-1b-it", STEP),
        ("Phi-4-mini-instruct", STEP),
        ("Phi-4-mini-instruct", BF16),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_prediction_is_what_a_step_keeps_alive(name: str, shape: TrainingShape) -> None:
    config = small_config(name)
    peak = peak_of_step(adapted(config, shape), shape)
    assert in_flight(config, shape) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "shape",
    [STEP, BF16, replace(STEP, adapter=AdapterShape(r=8, dropout=0.1))],
    ids=["float32", "bfloat16", "dropout"],
)
def test_prediction_with_fused_kernels(shape: TrainingShape) -> None:
    shape, config = replace(shape, fused_kernels=True), small_config("Llama-3.2-1B-Instruct")
    model = adapted(config, shape)
    speed_up(model)
    assert in_flight(config, shape) == pytest.approx(peak_of_step(model, shape), rel=0.06)


def test_weights_and_constants_are_those_of_bitsandbytes() -> None:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(256, 1024, bias=False, quant_type="nf4")
    weight = layer.to("cpu").weight
    state = weight.quant_state
    constants = state.absmax.numel() + 4 * (state.state2.absmax.numel() + 256)
    config = small_config("Llama-3.2-1B-Instruct") | {
        "num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 1024,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    }  # fmt: skip
    found = read_architecture(config)
    shape = replace(STEP, method="qlora", quantization="nf4")
    prediction = predict_memory(found, shape, CPU)
    up_shares = 256 * 1024 / found.linear_parameters
    whole = 4 * (found.parameters - found.linear_parameters)
    assert (prediction.weights - whole) * up_shares == weight.nbytes
    tables = len(found.modules) * 1024
    blocks = (prediction.quantization_constants - tables) * up_shares
    assert blocks + 1024 == pytest.approx(constants)
    plain = predict_memory(found, replace(shape, double_quantization=False), CPU)
    assert plain.quantization_constants == found.linear_parameters // 64 * 4


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adamw_torch", "AdamW", {}),
        ("sgd", "SGD", {}),
        ("adagrad", "Adagrad", {}),
        ("rmsprop", "RMSprop", {}),
    ],
)
def test_optimizer_states_are_those_that_torch_keeps(
    name: str, kind: str, options: dict[str, float]
) -> None:
    config, shape = small_config("Llama-3.2-1B-Instruct"), replace(STEP, optimizer=name)
    model = adapted(config, shape)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, kind)(weights, **options)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    assert predict_memory(read_architecture(config), shape, CPU).optimizer_states == kept


def test_adafactor_keeps_a_row_and_a_column() -> None:
    from transformers.optimization import Adafactor

    config, shape = small_config("Llama-3.2-1B-Instruct"), replace(STEP, optimizer="adafactor")
    weights = [p for p in adapted(config, shape).parameters() if p.requires_grad]
    optimizer = Adafactor(weights, lr=1e-3, relative_step=False, scale_parameter=False)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    assert predict_memory(read_architecture(config), shape, CPU).optimizer_states == kept


EIGHT_BILLION = real("Llama-3.1-8B-Instruct")
GPU_SHAPE = TrainingShape(
    dtype="bfloat16",
    compute_dtype="bfloat16",
    rows=2,
    tokens_per_row=1024,
    supervised_tokens_per_row=256,
    gradient_checkpointing=True,
)


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct", "gemma-3-4b-it", "Phi-4-mini-instruct"])
def test_parts_sum_to_the_total(name: str) -> None:
    found = predict_memory(real(name), GPU_SHAPE, GPUS["a100-80gb"])
    assert found.total == sum(found.parts().values())
    assert found.total - found.allocated == found.allocator + found.context
    assert all(size >= 0 for size in found.parts().values())


@pytest.mark.parametrize(
    "more",
    [
        {"rows": 3},
        {"tokens_per_row": 1025},
        {"supervised_tokens_per_row": 900},
        {"gradient_checkpointing": False},
        {"dtype": "float32"},
        {"adapter": AdapterShape(r=64)},
        {"gradient_accumulation_steps": 2},
        {"attention": "eager"},
        {"masked": True},
        {"head_positions_per_row": 1024},
    ],
    ids=str,
)
def test_more_of_anything_takes_more(more: dict[str, object]) -> None:
    less = predict_memory(EIGHT_BILLION, GPU_SHAPE, GPUS["a100-80gb"]).total
    shape = replace(GPU_SHAPE, **more)  # type: ignore[arg-type]
    assert predict_memory(EIGHT_BILLION, shape, GPUS["a100-80gb"]).total > less


@pytest.mark.parametrize(
    "less",
    [
        {"method": "qlora", "quantization": "nf4"},
        {"method": "qlora", "quantization": "int8"},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "adafactor"},
        {"fused_kernels": True},
        {"rows": 8, "shared_prefix_tokens": 1000, "gradient_checkpointing": False},
    ],
    ids=str,
)
def test_what_saves_memory_does(less: dict[str, object]) -> None:
    rows = int(str(less.get("rows", 2)))
    plain = replace(GPU_SHAPE, gradient_checkpointing=False, rows=rows)
    more = predict_memory(EIGHT_BILLION, plain, GPUS["a100-80gb"]).total
    shape = replace(plain, **less)  # type: ignore[arg-type]
    assert predict_memory(EIGHT_BILLION, shape, GPUS["a100-80gb"]).total < more


@pytest.mark.parametrize("hardware", ["rtx-4090", "a100-40gb", "h100-80gb"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_largest_batch_is_the_largest(hardware: str, method: str) -> None:
    shape = GPU_SHAPE
    if method == "qlora":
        shape = replace(shape, method="qlora", quantization="nf4")
    found, gpu = largest_batch(EIGHT_BILLION, shape, GPUS[hardware]), GPUS[hardware]
    assert found is not None

    def total(rows: int) -> int:
        return predict_memory(EIGHT_BILLION, shape.with_rows(rows), gpu).total

    assert total(found) <= gpu.memory_bytes < total(found + 1)


def test_remedies_make_one_row_fit() -> None:
    shape = replace(GPU_SHAPE, gradient_checkpointing=False, tokens_per_row=4096, rows=1)
    fit = find_fit(EIGHT_BILLION, shape, GPUS["rtx-4090"])
    assert not fit.fits
    assert fit.largest_rows is None
    assert fit.remedies == ("sft.gradient_checkpointing: true",)
    big = find_fit(real("Qwen2.5-14B-Instruct"), shape, GPUS["rtx-4090"])
    assert big.remedies == ("sft.gradient_checkpointing: true", "sft.method: qlora")
    long = replace(shape, supervised_tokens_per_row=32_000, tokens_per_row=32_768)
    short = find_fit(EIGHT_BILLION, long, GPUS["rtx-4090"]).remedies
    assert short == ("sft.gradient_checkpointing: true", "prepare.max_length_tokens: 4096")
    huge = find_fit(real("Llama-3.3-70B-Instruct"), shape, GPUS["rtx-4090"])
    assert huge.largest_rows is None
    assert huge.remedies == ()


# What others publish for a whole process or torch's allocator; their loops differ (chunked or
# fused losses, compilation), so the bands are wide. GiB.
@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        # torchtune README: one RTX 4090, batch 2, packed 2048; its loss makes logits in chunks.
        ("Llama-3.1-8B-Instruct", {"rows": 2, "tokens_per_row": 2048}, 16.2),
        ("Llama-3.1-8B-Instruct", {"rows": 2, "tokens_per_row": 2048, "nf4": True}, 7.4),
        # ms-swift: Qwen2.5-7B, batch 1, r 8, length 2048.
        ("Qwen2.5-7B-Instruct", {"tokens_per_row": 2048, "supervised_tokens_per_row": 2048}, 22),
        (
            "Qwen2.5-7B-Instruct",
            {"tokens_per_row": 2048, "supervised_tokens_per_row": 2048, "nf4": True},
            10,
        ),
        # PEFT's method comparison: LoRA r 32 on q and v, no checkpointing, 22.3 GB.
        (
            "Llama-3.2-3B-Instruct",
            {
                "rows": 4,
                "tokens_per_row": 768,
                "supervised_tokens_per_row": 768,
                "adapter": AdapterShape(r=32, target_modules=("q_proj", "v_proj")),
                "gradient_checkpointing": False,
            },
            22.3e9 / GIB,
        ),
    ],
)
def test_published_figures_are_near(name: str, shape: dict[str, object], published: float) -> None:
    quantized = {"method": "qlora", "quantization": "nf4"} if shape.pop("nf4", False) else {}
    base = replace(GPU_SHAPE, rows=1, adapter=AdapterShape(r=8))
    asked = replace(base, **shape, **quantized)  # type: ignore[arg-type]
    found = predict_memory(real(name), asked, GPUS["a100-80gb"]).total / GIB
    assert 0.75 * published < found < 1.25 * published


def test_the_optimizers_step_can_be_the_peak() -> None:
    """Full training on one token: weights, gradients, two states; on CUDA torch's AdamW keeps a
    root of every second moment at once (foreach), a fused one none."""
    shape = replace(FULL, rows=1, tokens_per_row=2, supervised_tokens_per_row=1)
    model, gpu = real("Llama-3.2-3B-Instruct"), GPUS["h100-80gb"]
    fused = predict_memory(model, replace(shape, optimizer="adamw_torch_fused"), gpu)
    plain = predict_memory(model, replace(shape, optimizer="adamw_torch"), gpu)
    assert plain.allocated == 5 * 4 * model.parameters
    assert 16 * model.parameters <= fused.allocated < 18 * model.parameters


def test_float32_with_grouped_keys_has_no_fused_kernel_on_cuda() -> None:
    shape = replace(GPU_SHAPE, dtype="float32")
    assert math_attention(EIGHT_BILLION, shape, on_cuda=True)
    assert not math_attention(EIGHT_BILLION, shape, on_cuda=False)
    assert not math_attention(EIGHT_BILLION, GPU_SHAPE, on_cuda=True)
    assert math_attention(real("gemma-2-2b-it"), GPU_SHAPE, on_cuda=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": "adam_of_mine"}, "no memory is known for adam_of_mine"),
        ({"method": "full"}, "an adapter is needed"),
        ({"method": "qlora"}, "a quantisation is needed"),
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(STEP, **wrong)  # type: ignore[arg-type]


def test_hardware_by_name() -> None:
    assert find_hardware("auto", CPU) is CPU
    assert find_hardware("cpu", CPU) is CPU
    assert find_hardware("rtx-4090", CPU).memory_bytes < 24 * GIB
    with pytest.raises(
        ConfigError, match=r"hardware: tpu is not known. Known: auto, cpu, rtx-4090"
    ):
        find_hardware("tpu", CPU)


@pytest.mark.parametrize(
    ("device", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
        ("NVIDIA GeForce RTX 3090", 23.5, None),
        ("NVIDIA H200", 139.8, None),
    ],
)
def test_hardware_by_the_devices_own_name(device: str, gib: float, name: str | None) -> None:
    found = by_device_name(device, int(gib * GIB))
    assert (found.name if found else None) == name
