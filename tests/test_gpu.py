"""The CUDA paths: LoRA and QLoRA training, and the numerics that they must keep. `-m gpu`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.models.loading import load_model
from luthier.training.batches import PaddedCollator
from luthier.training.loss import summed_loss
from training_cases import PREFIX, make_job, run_job, token_rows, write_dataset

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "fields", [{"method": "lora"}, {"method": "qlora"}], ids=["lora", "qlora"]
)
def test_bfloat16_training_keeps_a_float32_adapter_that_learns(
    tiny_base: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", train=24)
    outcome = run_job(make_job(tiny_base, dataset, tmp_path / "run", epochs=4, **fields))
    assert outcome is not None
    facts = outcome.facts["training"]
    assert (facts["device"], facts["dtype"]) == ("cuda", "bfloat16")
    assert outcome.metrics["validation_loss"] < outcome.metrics["validation_loss_before"]
    gates = {gate.id: gate for gate in outcome.gates}
    assert gates["adapter-dtype"].measured == "float32"
    assert gates["adapter-moved"].status == "pass"


def test_stopped_and_resumed_training_ends_alike(tiny_base: Path, tmp_path: Path) -> None:
    """Kernels on a GPU may add in another order each time, so not bit by bit."""
    dataset = write_dataset(tmp_path / "dataset")
    fields: dict[str, Any] = {"dtype": "float32", "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    whole = make_job(tiny_base, dataset, tmp_path / "whole", **fields)
    parts = make_job(tiny_base, dataset, tmp_path / "parts", **fields)
    run_job(whole)
    assert run_job(parts, asked_to_stop=lambda: True) is None
    run_job(parts)
    assert losses(parts.outputs) == pytest.approx(losses(whole.outputs), rel=1e-4)


def losses(outputs: Path) -> list[float]:
    log = (outputs / "measured" / "training_log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_shared_prefix_equals_plain_on_cuda(tiny_base: Path) -> None:
    model = load_model(tiny_base, dtype="float32")
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    inputs = {name: value.to("cuda") for name, value in batch.items()}
    with torch.inference_mode():
        shared = summed_loss(model, inputs, share_prefix=True)
        plain = summed_loss(model, inputs, share_prefix=False)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
