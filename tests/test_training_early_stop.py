"""Validation, early stopping and the best weights: what is measured, and that it stays so."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.errors import DataError
from luthier.progress import Reporter
from luthier.training.callbacks import Schedule, StageEvents, loss_is_real
from luthier.training.checkpoints import checkpoint_folder, sealed_steps
from luthier.training.job import TrainingJob
from luthier.training.resuming import stop_reason
from luthier.training.section import EarlyStoppingSection
from luthier.watching import Watch
from training_cases import PREFIX, Following, make_job, run_job, token_rows, write_dataset
from training_watch import Watched, light_sessions, same, saved, watch

__all__ = ["light_sessions"]

# A rate so high that the tokens which only validation rows have soon grow unlikely.
RISING: dict[str, Any] = {"learning_rate": 3e-2, "schedule": "constant", "epochs": 2}


def planted_rows() -> list[dict[str, Any]]:
    """Training rows, with four tokens after each that training never sees."""
    unseen = [9000, 9007, 9014, 9021]
    return [
        {"input_ids": row["input_ids"] + unseen, "labels": row["labels"] + unseen}
        for row in token_rows(4, prefix=PREFIX, seed=3)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation loss falls for two steps on it, then it rises."""
    folder = write_dataset(tmp_path_factory.mktemp("planted"), validation=0)
    table = pa.Table.from_pylist(planted_rows())
    parquet.write_table(table, folder / "validation-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def curve(
    tiny_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """The validation loss after every step of a training that nothing stops."""
    fields = RISING | {"evaluate_every_steps": 1, "keep": "last"}
    seen = watch(make_job(tiny_base, dataset, tmp_path_factory.mktemp("curve"), **fields))
    found = {step: loss for step, loss in seen.evaluations.items() if step > 0}
    assert list(found) == list(range(1, 9))
    assert found[1] > found[2] < found[4] < found[6]
    return found


@pytest.fixture
def job(tiny_base: Path, dataset: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    """A job of 8 steps in a folder of that name, which early stopping ends after 6."""

    def job(name: str, **fields: Any) -> TrainingJob:
        stopping = {"evaluate_every_steps": 2, "early_stopping": {"patience": 2}}
        return make_job(tiny_base, dataset, tmp_path / name, **(RISING | stopping | fields))

    return job


def losses(seen: Watched) -> list[float]:
    return [line["loss"] for line in seen.log]


def gates(seen: Watched) -> dict[str, Any]:
    assert seen.outcome is not None
    return {gate.id: gate for gate in seen.outcome.gates}


def facts(seen: Watched) -> dict[str, Any]:
    assert seen.outcome is not None
    return dict(seen.outcome.facts["training"])


def test_stops_and_keeps_the_best_weights(
    job: Callable[..., TrainingJob], curve: dict[int, float]
) -> None:
    asked = job("run", checkpoint_every_steps=1, keep_checkpoints=1)
    seen = watch(asked)
    found = facts(seen)
    assert (found["stop_reason"], found["steps"], found["kept_step"]) == ("early stopping", 6, 2)
    assert {step: loss for step, loss in seen.evaluations.items() if step} == {
        step: curve[step] for step in (2, 4, 6)
    }
    assert sealed_steps(asked.checkpoints) == [6, 2], "the best outlives those after it"
    best = checkpoint_folder(asked.checkpoints, 2) / "adapter_model.safetensors"
    assert same(saved(asked), load_file(best))
    assert gates(seen)["overfit"].measured == 1.0
    assert gates(seen)["validation-improves"].measured == curve[2]


def test_last_weights_are_kept_when_asked(
    job: Callable[..., TrainingJob], curve: dict[int, float]
) -> None:
    asked = job("run", keep="last")
    seen = watch(asked)
    assert facts(seen)["kept_step"] == 6
    final = {name.replace(".default", ""): weight for name, weight in seen.weights[-1].items()}
    assert same(saved(asked), final)
    assert gates(seen)["overfit"].measured == pytest.approx(curve[6] / curve[2], abs=1e-6)


def stop_of(curve: dict[int, float], patience: int, min_improvement: float) -> int | None:
    lowest, waited = float("inf"), 0
    for step, loss in curve.items():
        improved = loss < lowest - min_improvement
        lowest, waited = (loss, 0) if improved else (lowest, waited + 1)
        if waited == patience:
            return step
    return None


@pytest.mark.parametrize(
    ("patience", "min_improvement", "expected"),
    [(1, 0.0, 3), (4, 0.0, 6), (1, 0.6, 2), (7, 0.0, 8)],
)
def test_patience_and_improvement_decide(
    patience: int,
    min_improvement: float,
    expected: int,
    job: Callable[..., TrainingJob],
    curve: dict[int, float],
) -> None:
    stopping = {"patience": patience, "min_improvement": min_improvement}
    seen = watch(job("run", evaluate_every_steps=1, early_stopping=stopping))
    stop = stop_of(curve, patience, min_improvement)
    assert (stop or len(curve)) == expected == facts(seen)["steps"]
    reason = "early stopping" if stop else "epochs done"
    assert facts(seen)["stop_reason"] == reason


def stop_after(steps: int) -> Callable[[], bool]:
    """Asked at the end of every step, says yes at the end of one."""
    asked = iter(range(1, 100))
    return lambda: next(asked) == steps


@pytest.mark.parametrize("steps", [3, 5])
def test_state_outlives_a_stop(job: Callable[..., TrainingJob], steps: int) -> None:
    """F22: between two evaluations, before and after the first that did not improve."""
    whole, parts = job("whole"), job("parts")
    expected = watch(whole)
    first = watch(parts, stop_after(steps))
    assert first.outcome is None
    assert len(first.log) == steps
    second = watch(parts)
    assert len(second.gradients) == 6 - steps
    assert losses(second) == losses(expected)
    assert second.evaluations == expected.evaluations
    assert same(saved(parts), saved(whole))
    for name in ("stop_reason", "steps", "kept_step", "trained_tokens"):
        assert facts(second)[name] == facts(expected)[name]


def test_who_watches_is_told_every_validation_and_ends_it(
    job: Callable[..., TrainingJob],
) -> None:
    """Ended at the very step, with a checkpoint; what goes on from it ends as a whole one."""
    fields = {"early_stopping": None, "lora": {"r": 4, "alpha": 8, "dropout": 0.2}}
    whole, parts = job("whole", **fields), job("parts", **fields)
    follows, ends = Following(), Following(end_after=2)
    assert run_job(whole, watch=follows) is not None
    assert [progress for progress, _ in follows.seen] == [0.25, 0.5, 0.75, 1.0]
    assert run_job(parts, watch=ends) is None
    assert ends.seen == follows.seen[:2]
    [step, *_] = sealed_steps(parts.checkpoints)
    assert step == 4
    assert stop_reason(checkpoint_folder(parts.checkpoints, step)) is None
    second = watch(parts)
    assert len(second.gradients) == 4
    assert same(saved(parts), saved(whole))
    assert facts(second)["stop_reason"] == "epochs done"


def test_progress_is_the_share_that_was_asked_for(job: Callable[..., TrainingJob]) -> None:
    fields = {"evaluate_every_steps": None, "early_stopping": None, "max_steps": 7}
    follows = Following()
    run_job(job("run", **fields, evaluate_every_fraction=0.3), watch=follows)
    assert [progress for progress, _ in follows.seen] == [0.3, 0.6, 0.9, 1.0]


def test_what_stops_early_does_so_whoever_watches(job: Callable[..., TrainingJob]) -> None:
    """Ended at the same validation, it must not train on when it is run again."""
    whole, ended = job("whole"), job("ended")
    expected = watch(whole)
    outcome = run_job(ended, watch=Following(end_after=3))
    assert outcome is not None
    assert outcome.facts["training"]["stop_reason"] == "early stopping"
    again = watch(ended)
    assert again.gradients == []
    assert facts(again)["steps"] == facts(expected)["steps"] == 6
    assert same(saved(ended), saved(whole))


@pytest.mark.parametrize("fields", [{}, {"early_stopping": None, "epochs": 1}])
def test_finished_checkpoint_is_not_trained_on(
    job: Callable[..., TrainingJob], fields: dict[str, Any]
) -> None:
    """Killed after the last checkpoint, early or not, and before the adapter was written."""
    asked = job("run", **fields)
    expected = watch(asked)
    weights = saved(asked)
    shutil.rmtree(asked.outputs)
    asked.outputs.mkdir()
    again = watch(asked)
    assert again.gradients == []
    assert losses(again) == losses(expected)
    assert again.evaluations == expected.evaluations
    assert same(saved(asked), weights)
    for name in ("stop_reason", "steps", "kept_step", "trained_tokens"):
        assert facts(again)[name] == facts(expected)[name]
    assert gates(again) == gates(expected)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "ademamix_8bit", "adafactor"])
def test_optimizer_states_outlive_a_stop(optimizer: str, job: Callable[..., TrainingJob]) -> None:
    fields = {
        "optimizer": optimizer,
        "lora": {"r": 64, "alpha": 64, "dropout": 0.1, "loraplus_lr_ratio": 2},
        "epochs": 1,
        "schedule": "cosine",
        "learning_rate": 1e-3,
    }
    whole, parts = job("whole", **fields), job("parts", **fields)
    expected = watch(whole)
    watch(parts, stop_after(2))
    found = watch(parts)
    assert len(found.gradients) == 2
    assert losses(found) == losses(expected)
    assert same(found.weights[-1], expected.weights[-1])


def test_validation_loss_is_the_mean_of_supervised_tokens(
    tiny_base: Path, job: Callable[..., TrainingJob]
) -> None:
    """Row by row by plain transformers, before training and after it."""
    asked = job("run", keep="last")
    seen = watch(asked)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert seen.evaluations[0] == pytest.approx(plain_loss(model), rel=1e-5)
    adapted = PeftModel.from_pretrained(model, str(asked.outputs))
    assert seen.evaluations[6] == pytest.approx(plain_loss(adapted), rel=1e-5)


def plain_loss(model: torch.nn.Module) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for row in planted_rows():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"])[1:]
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"evaluate_every_steps": 3}, [0, 3, 6, 8]),
        ({"evaluate_every_fraction": 0.25}, [0, 2, 4, 6, 8]),
        ({"evaluate_every_fraction": 0.4, "max_steps": 7}, [0, 3, 6, 7]),
        ({"epochs": 1.5}, [0, 4, 6]),
        ({"gradient_accumulation_steps": 2}, [0, 2, 4]),
        ({"epochs": 1, "gradient_accumulation_steps": 4}, [0, 1]),
    ],
)
def test_evaluates_when_asked_and_at_the_end(
    fields: dict[str, Any],
    expected: list[int],
    job: Callable[..., TrainingJob],
) -> None:
    """Four batches an epoch; without a number of steps, after each epoch."""
    settings = {
        "evaluate_every_steps": None,
        "early_stopping": None,
        "warmup_fraction": 0,
    } | fields
    assert list(watch(job("run", **settings)).evaluations) == expected


def test_evaluation_changes_nothing_in_training(
    tiny_base: Path, tmp_path: Path, job: Callable[..., TrainingJob]
) -> None:
    """Dropout draws a random number for each step; an evaluation must draw none."""
    fields = {"lora": {"r": 4, "alpha": 8, "dropout": 0.2}, "keep": "last", "early_stopping": None}
    with_rows = job("with", evaluate_every_steps=1, **fields)
    blind = write_dataset(tmp_path / "blind", validation=0)
    without = make_job(tiny_base, blind, tmp_path / "without", **(RISING | fields))
    one, other = watch(with_rows), watch(without)
    assert losses(one) == losses(other)
    assert same(saved(with_rows), saved(without))
    assert other.evaluations == {}
    assert "overfit" not in gates(other)


@pytest.mark.parametrize(
    "field", ["early_stopping", "evaluate_every_steps", "evaluate_every_fraction"]
)
def test_what_needs_validation_rows_is_refused_without(
    field: str, tiny_base: Path, tmp_path: Path
) -> None:
    blind = write_dataset(tmp_path / "blind", validation=0)
    value: Any = {"early_stopping": {"patience": 1}, "evaluate_every_steps": 2}.get(field, 0.5)
    with pytest.raises(DataError, match=rf"sft\.{field} needs validation rows"):
        watch(make_job(tiny_base, blind, tmp_path / "run", **{field: value}))


@pytest.mark.parametrize(
    ("fraction", "last", "expected"),
    [
        (0.25, 8, [2, 4, 6, 8]),
        (0.25, 10, [2, 5, 8, 10]),
        (0.25, 3, [1, 2, 3]),
        (0.1, 1000, [100 * part for part in range(1, 11)]),
        (0.3, 10, [3, 6, 9, 10]),
        (0.5, 1, [1]),
        (0.02, 3, [1, 2, 3]),
    ],
)
def test_shares_of_the_steps(fraction: float, last: int, expected: list[int]) -> None:
    schedule = Schedule(True, evaluate_every_fraction=fraction)
    steps = range(1, last + 1)
    assert [step for step in steps if schedule.evaluates(step, 5, last)] == expected
    blind = Schedule(False, evaluate_every_fraction=fraction)
    assert not any(blind.evaluates(step, 5, last) for step in steps)


def test_early_stopping_looks_at_shares_of_the_steps_too(
    job: Callable[..., TrainingJob], curve: dict[int, float]
) -> None:
    """Patience ends 8 steps after the sixth; stopped between two evaluations and resumed."""
    fields = {"evaluate_every_steps": None, "evaluate_every_fraction": 0.25}
    asked = job("run", **fields)
    assert watch(asked, stop_after(5)).outcome is None
    seen = watch(asked)
    found = facts(seen)
    assert (found["stop_reason"], found["steps"], found["kept_step"]) == ("early stopping", 6, 2)
    assert {step: loss for step, loss in seen.evaluations.items() if step} == {
        step: curve[step] for step in (2, 4, 6)
    }


def test_a_loss_that_is_not_a_number_is_no_improvement() -> None:
    schedule = Schedule(True, early_stopping=EarlyStoppingSection(patience=3))
    with Reporter().task("training", 4) as task:
        events = StageEvents(lambda: False, task, schedule, loss_is_real, Watch())
    counts = []
    for step, loss in enumerate([float("nan"), 2.0, float("inf"), 1.0], start=1):
        state = SimpleNamespace(global_step=step, max_steps=4)
        events.on_evaluate(None, state, SimpleNamespace(), {"eval_loss": loss})
        counts.append((events.lowest_loss, events.without_improvement))
    assert counts == [(None, 1), (2.0, 0), (2.0, 1), (1.0, 0)]
