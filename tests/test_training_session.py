"""What a training says of itself: its log, its gates, and why it ended."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ModelError
from luthier.gates import Gate
from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach, moved_share, output_matrices
from luthier.training import supervised
from luthier.training.callbacks import loss_is_real
from luthier.training.job import Outcome
from luthier.training.loss import summed_loss
from training_cases import make_job, run_job, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def gates(outcome: Outcome | None) -> dict[str, Gate]:
    assert outcome is not None
    return {gate.id: gate for gate in outcome.gates}


def log_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "outputs" / "measured" / "training_log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("loss", "real"), [(0.3, True), (0.0, False), (float("nan"), False), (float("inf"), False)]
)
def test_loss_is_real(loss: float, real: bool) -> None:
    assert loss_is_real(loss) is real


def test_log_has_every_step_and_standard_output_nothing(
    tiny_base: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_job(make_job(tiny_base, dataset, tmp_path))
    assert capsys.readouterr().out == ""
    log = log_of(tmp_path)
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in log if "eval_loss" in line] == [0, 4, 8]
    assert all(gate.status == "pass" for gate in gates(outcome).values())


def test_adapter_moved_is_measured(tiny_base: Path) -> None:
    """F15: from zero, in every element, and nowhere NaN."""
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8), seed=5)
    before = output_matrices(model)
    assert moved_share(before, output_matrices(model)) == 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 1e-3
    learned = output_matrices(model)
    assert moved_share(before, learned) == 1.0
    learned[next(iter(learned))][0, 0] = float("nan")
    assert moved_share(before, learned) == 0.0


def test_a_rate_too_small_to_move_float32_fails_the_gate(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """F15: what learned nothing is not passed off as trained."""
    outcome = run_job(make_job(tiny_base, dataset, tmp_path, learning_rate=1e-45, max_steps=2))
    assert gates(outcome)["adapter-moved"].status == "fail"


@pytest.fixture
def poisoned_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The loss is NaN from the third batch on; the list grows with every batch."""
    done: list[int] = []

    def poisoned(*arguments: Any, **options: Any) -> Any:
        done.append(len(done) + 1)
        return summed_loss(*arguments, **options) * (float("nan") if len(done) > 2 else 1.0)

    monkeypatch.setattr(supervised, "summed_loss", poisoned)
    return done


def test_nan_loss_ends_the_training_at_its_step(
    tiny_base: Path, dataset: Path, tmp_path: Path, poisoned_batches: list[int]
) -> None:
    """F16: a NaN is seen, not averaged away."""
    outcome = run_job(make_job(tiny_base, dataset, tmp_path))
    assert poisoned_batches == [1, 2, 3]
    assert gates(outcome)["loss-is-real"].status == "fail"
    assert gates(outcome)["adapter-moved"].status == "fail"
    assert outcome is not None
    assert outcome.facts["training"]["stop_reason"] == "loss is not real"


def test_training_goes_on_from_an_adapter(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    """Its shape and its values, changed by so little as one step at a tiny rate does: trl 1.16
    rounds adapters on a 4-bit base to bfloat16 when the trainer is made."""
    lora = {"r": 3, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}
    first = make_job(tiny_base, dataset, tmp_path / "first", lora=lora)
    run_job(first)
    further = {"max_steps": 1, "warmup_fraction": 0, "learning_rate": 1e-6}
    second = make_job(
        tiny_base, dataset, tmp_path / "second", start=first.outputs, method="qlora", **further
    )
    run_job(second)
    config = json.loads((second.outputs / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    before, after = (
        load_file(job.outputs / "adapter_model.safetensors") for job in (first, second)
    )
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], values, atol=1e-5) for name, values in before.items())
    assert any(not torch.equal(after[name], values) for name, values in before.items())


def test_full_training_goes_on_from_a_whole_model(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    first = make_job(tiny_base, dataset, tmp_path / "first", method="full", learning_rate=1e-3)
    run_job(first)
    further = {"max_steps": 1, "warmup_fraction": 0, "learning_rate": 1e-7, "method": "full"}
    second = make_job(tiny_base, dataset, tmp_path / "second", start=first.outputs, **further)
    run_job(second)
    before, after = (load_file(job.outputs / "model.safetensors") for job in (first, second))
    assert all(torch.allclose(after[name], values, atol=1e-6) for name, values in before.items())


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("full", "lora", "was trained in full, which is no adapter"),
        ("lora", "full", "is an adapter, and sft.method: full trains a whole model"),
    ],
)
def test_a_start_of_the_other_method_is_refused(
    tiny_base: Path, dataset: Path, tmp_path: Path, first: str, second: str, said: str
) -> None:
    start = make_job(tiny_base, dataset, tmp_path / "first", method=first, max_steps=2)
    run_job(start)
    job = make_job(tiny_base, dataset, tmp_path / "second", start=start.outputs, method=second)
    with pytest.raises(ModelError, match=f"sft.start_from: try/adapter {said}"):
        run_job(job)
