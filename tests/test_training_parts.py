"""Large batches go through the model in parts: which rows together, and what that foretells."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from estimate_cases import real_config
from luthier.estimate.hardware import GPUS, Hardware, cpu
from luthier.training.performance import PART_TOKENS
from luthier.training.prediction import Prediction, RowNumbers, predict
from luthier.training.sft_section import SFTSection
from luthier.training.shrinking import ShrinkingStep


def test_parts_have_as_many_tokens_as_they_may() -> None:
    """Rows of like length together; one that is longer than a part is a part of its own."""
    ran: list[list[int]] = []

    def run(rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        ran.append([len(row["input_ids"]) for row in rows])
        return torch.tensor(float(len(rows)))

    step = ShrinkingStep(forget=lambda: None, say=None, most_tokens=100)
    rows = [{"input_ids": [0] * length} for length in (50, 20, 120, 30, 30, 50, 10)]
    assert float(step(rows, run, ends_step=True)) == len(rows)
    assert ran == [[10, 20, 30], [30, 50], [50], [120]]
    whole = rows[:2]
    step(whole, lambda one: ran.append(one is whole) or torch.tensor(0.0), ends_step=True)
    assert ran[-1] is True


def test_without_a_listener_no_memory_is_an_error() -> None:
    def run(_rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        raise MemoryError

    step = ShrinkingStep(forget=lambda: None, say=None)
    with pytest.raises(MemoryError):
        step([{"input_ids": [0]}] * 2, run, ends_step=True)


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, PART_TOKENS["cpu"] // 665),
        ({"performance": {"split_batches": False}}, 16),
        ({"processes": 2}, 16),
    ],
)
def test_memory_is_foretold_for_a_part_and_time_for_all(fields: dict[str, Any], rows: int) -> None:
    numbers, machine = RowNumbers(1600, 665, 120.0, 400, 60.0, 0), cpu(2**34, 2, maps_tensors=True)
    config = real_config("SmolLM2-135M-Instruct")

    def foretold(hardware: Hardware, **more: Any) -> Prediction:
        values = {"per_device_batch_size": 16, "epochs": 1} | fields | more
        return predict(config, SFTSection.model_validate(values), numbers, hardware)

    assert foretold(machine).shape.rows == rows
    assert foretold(GPUS["rtx-4090"]).shape.rows == 16
    whole = foretold(machine, performance={"split_batches": False})
    assert foretold(machine).time == whole.time


@pytest.mark.parametrize(
    ("fields", "prefix", "fused"),
    [
        ({}, 39, True),
        ({"performance": {"share_prefix": False, "fused_lora": False}}, 0, False),
        ({"gradient_checkpointing": True}, 0, True),
        ({"neftune_noise_alpha": 5}, 0, True),
        ({"lora": {"dropout": 0.1}}, 0, True),
        ({"processes": 2}, 0, True),
        ({"lora": {"use_dora": True}}, 39, False),
        ({"method": "full"}, 39, False),
    ],
)
def test_what_is_foretold_is_what_will_be_decided(
    fields: dict[str, Any], prefix: int, fused: bool
) -> None:
    numbers, config = RowNumbers(160, 64, 64.0, 8, 8.0, 40), real_config("SmolLM2-135M-Instruct")
    section = SFTSection.model_validate({"per_device_batch_size": 4} | fields)
    shape = predict(config, section, numbers, GPUS["rtx-4090"]).shape
    assert (shape.shared_prefix_tokens, shape.fused_kernels) == (prefix, fused)


def test_more_processes_shorten_an_epoch_and_no_fixed_number_of_steps() -> None:
    """An epoch is dealt out to them; with `max_steps` every process does each of the steps."""
    numbers, config = RowNumbers(1600, 64, 64.0, 8, 8.0, 0), real_config("SmolLM2-135M-Instruct")

    def seconds(**fields: Any) -> float:
        section = SFTSection.model_validate({"per_device_batch_size": 4} | fields)
        return predict(config, section, numbers, GPUS["rtx-4090"]).time.seconds

    assert seconds(epochs=1, processes=2) == pytest.approx(seconds(epochs=1) / 2)
    assert seconds(max_steps=50, processes=2) == seconds(max_steps=50)
    assert seconds(max_steps=50, gradient_accumulation_steps=2) > 1.5 * seconds(max_steps=50)


def test_freed_tensors_go_back() -> None:
    """In a process of its own: glibc's default puts the second round into its heap."""
    code = """
import gc, torch
from luthier.training.meter import map_tensors, resident_memory_bytes
map_tensors()
for _ in range(2):
    freed, kept = [], []
    for _ in range(40):
        freed.append(torch.ones(2**19))
        kept.append(torch.ones(2**18))
    before = resident_memory_bytes()
    del freed
    gave_back = before - resident_memory_bytes()
assert gave_back > 70 * 2**20, gave_back
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
