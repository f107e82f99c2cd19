"""Time, cost, what `luthier plan` says of memory, and the benchmarks that measure it."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from estimate_cases import SMALL, real
from luthier.estimate.fitting import find_fit
from luthier.estimate.hardware import GIB, GPUS, cpu
from luthier.estimate.memory import predict_memory
from luthier.estimate.shape import TrainingShape, trained
from luthier.estimate.time import micro_batch_flops, predict_seconds
from luthier.report.plan_estimate import as_json, estimate_lines, verdict

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODEL = real("Llama-3.2-3B-Instruct")
SHAPE = TrainingShape(
    dtype="bfloat16",
    compute_dtype="bfloat16",
    rows=4,
    tokens_per_row=512,
    supervised_tokens_per_row=64,
)
GPU = GPUS["rtx-4090"]


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_flops_are_those_of_matrix_products() -> None:
    """By hand: full training, one row of one token, one supervised: 6 a parameter, no more."""
    shape = TrainingShape(
        method="full", adapter=None, tokens_per_row=1, supervised_tokens_per_row=1
    )
    attention = 12 * MODEL.layers * MODEL.query_size / 2
    expected = 6 * (MODEL.linear_parameters + MODEL.embedding_parameters) + attention
    assert micro_batch_flops(MODEL, shape) == expected
    lora = TrainingShape(tokens_per_row=1, supervised_tokens_per_row=1)
    own = trained(MODEL, lora).parameters
    frozen = MODEL.linear_parameters + MODEL.embedding_parameters
    assert micro_batch_flops(MODEL, lora) == 4 * frozen + 6 * own + attention


def test_flops_counted_by_torch_are_near() -> None:
    """torch's own counter, on a small model that is trained in full."""
    from torch.utils.flop_counter import FlopCounterMode

    from estimate_cases import adapted, peak_of_step, small_config
    from luthier.estimate.architecture import read_architecture

    config = small_config("Llama-3.2-1B-Instruct")
    shape = TrainingShape(
        method="full", adapter=None, rows=2, tokens_per_row=48, supervised_tokens_per_row=8
    )
    model = adapted(config, shape)
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter:
        peak_of_step(model, shape)
    attention = 12 * 4 * 64 * 2 * 48**2 / 2  # eager computes the masked half too
    counted = counter.get_total_flops() - attention
    assert micro_batch_flops(read_architecture(config), shape) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "slower",
    [
        {"gradient_checkpointing": True},
        {"tokens_per_row": 600},
        {"supervised_tokens_per_row": 512},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_more_work_takes_longer(slower: dict[str, object]) -> None:
    def seconds(shape: TrainingShape) -> float:
        return predict_seconds(MODEL, shape, GPU, micro_batches=10).seconds

    assert seconds(replace(SHAPE, **slower)) > seconds(SHAPE)  # type: ignore[arg-type]
    full = replace(SHAPE, method="full", adapter=None)
    assert seconds(full) > seconds(SHAPE)
    assert seconds(replace(SHAPE, shared_prefix_tokens=300)) < seconds(SHAPE)


def test_cost_is_time_at_the_hourly_price() -> None:
    found = predict_seconds(MODEL, SHAPE, GPU, micro_batches=100)
    assert found.price_usd == pytest.approx(found.seconds / 3600 * 0.60)
    twice = predict_seconds(MODEL, SHAPE, GPU, micro_batches=200)
    assert twice.seconds == pytest.approx(2 * found.seconds)
    assert found.tokens_per_second * found.seconds == pytest.approx(100 * 4 * 512)
    here = cpu(GIB, 2, maps_tensors=True)
    shape = replace(SHAPE, dtype="float32")
    assert predict_seconds(MODEL, shape, here, micro_batches=1).price_usd is None


def test_a_small_batch_waits_for_the_weights() -> None:
    """One token computes for less time than it takes to read three billion weights twice."""
    shape = replace(SHAPE, rows=1, tokens_per_row=1, supervised_tokens_per_row=1)
    found = predict_seconds(MODEL, shape, GPU, micro_batches=1)
    assert found.seconds > 2 * 2 * MODEL.linear_parameters / GPU.bandwidth_bytes_per_second


def test_lines_say_parts_peak_and_verdict() -> None:
    fit = find_fit(MODEL, SHAPE, GPU)
    time = predict_seconds(MODEL, SHAPE, GPU, micro_batches=100)
    lines = estimate_lines(fit, MODEL, SHAPE, GPU, time)
    assert lines[0] == (
        "memory on rtx-4090: llama of 3,212,749,824 parameters, lora bfloat16, 4 x 512 tokens"
    )
    assert f"  {'weights':32}  5.98 GiB" in lines
    assert any(line.startswith("  peak ") for line in lines)
    assert any(" USD" in line for line in lines)
    assert fit.largest_rows is not None
    tokens = fit.largest_rows * 512
    assert f"  {verdict(fit, SHAPE)}" in lines
    assert verdict(fit, SHAPE).startswith("fits (")
    assert verdict(fit, SHAPE).endswith(f"(sft.batch_tokens: {tokens})")


def test_a_batch_that_does_not_fit_is_told_one_that_does() -> None:
    shape = SHAPE.with_rows(200)
    said = verdict(find_fit(MODEL, shape, GPU), shape)
    assert said.startswith("does not fit: ")
    assert " of 23.5 GiB; the largest batch that fits is " in said


def test_a_model_that_does_not_fit_is_told_what_would() -> None:
    eight, fourteen = real("Llama-3.1-8B-Instruct"), real("Qwen2.5-14B-Instruct")
    shape = replace(SHAPE, tokens_per_row=4096, rows=1)
    said = verdict(find_fit(eight, shape, GPU), shape)
    assert said.endswith("not even one row fits. One would with sft.gradient_checkpointing: true")
    said = verdict(find_fit(fourteen, shape, GPU), shape)
    assert said.endswith("sft.gradient_checkpointing: true, sft.method: qlora")
    said = verdict(find_fit(real("Llama-3.3-70B-Instruct"), shape, GPU), shape)
    assert said.endswith("Take larger hardware")


def test_json_has_the_same_numbers() -> None:
    fit = find_fit(MODEL, SHAPE, GPU)
    time = predict_seconds(MODEL, SHAPE, GPU, micro_batches=100)
    found = json.loads(json.dumps(as_json(fit, SHAPE, GPU, time)))
    assert found["peak_bytes"] == sum(found["parts_bytes"].values()) == fit.prediction.total
    assert found["largest_batch_tokens"] == found["largest_rows"] * 512
    assert found["fits"] is True
    assert found["seconds"] == time.seconds
    assert as_json(fit, SHAPE, GPU)["price_usd"] is None


def test_notes_on_the_model_are_shown() -> None:
    unsure = replace(MODEL, notes=("model_type new is not known here",))
    lines = estimate_lines(find_fit(unsure, SHAPE, GPU), unsure, SHAPE, GPU)
    assert lines[-1] == "  model_type new is not known here"


def test_the_weights_file_counts_on_a_cpu_only_where_it_stays_or_is_converted() -> None:
    here = cpu(16 * GIB, 2, maps_tensors=True)
    shape = replace(SHAPE, dtype="float32", rows=1, tokens_per_row=8, supervised_tokens_per_row=1)
    linear = MODEL.linear_parameters * 4
    plain, sixteen = replace(MODEL, stored_dtype="float32"), MODEL
    quantized = replace(shape, method="qlora", quantization="nf4")
    assert predict_memory(plain, shape, here).stored == 0
    assert predict_memory(plain, quantized, here).stored == linear
    converted = predict_memory(sixteen, shape, here)
    assert converted.stored == MODEL.parameters * 2
    assert converted.total == MODEL.parameters * 6 + here.context_bytes
    longer = predict_memory(sixteen, shape.with_rows(64).with_length(2048), here)
    assert longer.stored == 0
    assert predict_memory(sixteen, quantized, GPU).stored == 0


def test_gpu_benchmark_builds_what_it_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark("gpu_memory")
    arguments = module.parse(["--models", "Llama-3.2-1B-Instruct", "--lengths", "512"])
    cases = list(module.cases(arguments))
    assert [(c.shape.method, c.shape.gradient_checkpointing) for c in cases] == [
        ("lora", False), ("lora", True), ("qlora", False), ("qlora", True),
    ]  # fmt: skip
    model = module.build(cases[0], "meta")
    predicted = cases[0].predicted()
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert held == predicted.weights + predicted.adapter
    if not torch.cuda.is_available():
        assert module.compare(cases[0])["why"] == "no CUDA device"
        assert "not measured: no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_gpu_benchmark_fills_weights_that_work(method: str) -> None:
    module = benchmark("gpu_memory")

    class SmallCase(module.Case):  # type: ignore[name-defined,misc]
        @property
        def config(self) -> dict[str, object]:
            return super().config | SMALL

    arguments = module.parse(["--models", "Llama-3.2-1B-Instruct", "--methods", method])
    case = next(module.cases(arguments))
    case = SmallCase(case.model, replace(case.shape, tokens_per_row=8))
    model = module.build(case, "cpu")
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert held == case.predicted().weights + case.predicted().adapter
    logits = model(input_ids=torch.arange(8).unsqueeze(0)).logits
    assert torch.isfinite(logits).all()


def test_cpu_benchmark_has_six_shapes_or_more_and_predicts_them() -> None:
    module = benchmark("cpu_memory")
    totals = {name: module.predicted(case, mapped=True) for name, case in module.CASES.items()}
    assert len(totals) >= 6
    assert all(parts["total"] > 300 * 2**20 for parts in totals.values())
