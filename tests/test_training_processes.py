"""Training in several processes: the same numbers as one, and no process that outlives its run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from luthier.errors import ConfigError, DataError, GateError, ModelError
from luthier.gates import check
from luthier.progress import Reporter
from luthier.stages.sft import STAGE
from luthier.training.checkpoints import checkpoint_folder, newest_intact, sealed_steps
from luthier.training.job import Outcome, TrainingJob
from luthier.training.launch import failure_of, train_in_processes
from luthier.training.mailbox import Mailbox
from luthier.training.resuming import stop_reason
from process_cases import Watching, processes_of, ranks_at_work, wait_until
from training_cases import Following, make_job, run_job, write_dataset

# 12 rows in batches of 3 are 2 steps an epoch of two processes: 8 steps.
FIELDS: dict[str, Any] = {"processes": 2, "epochs": 4}
ALONE: dict[str, Any] = {"gradient_accumulation_steps": 2, "epochs": 4}
TOLERANCE = 1e-4
START = """
import sys
from luthier.progress import Reporter
from luthier.training.job import TrainingJob
from luthier.stages.sft import STAGE
from luthier.training.launch import failure_of, train_in_processes
train_in_processes(TrainingJob.model_validate_json(sys.argv[1]), Reporter(), lambda: False)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def alone(tiny_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """One process that accumulates over two batches, and what it made."""
    job = make_job(tiny_base, dataset, tmp_path_factory.mktemp("alone"), **ALONE)
    assert run_job(job) is not None
    return job


def log(job: TrainingJob, *names: str) -> list[list[float]]:
    lines = (job.outputs / "measured" / "training_log.jsonl").read_text().splitlines()
    return [[line[name] for name in names if name in line] for line in map(json.loads, lines)]


def outputs(job: TrainingJob) -> list[str]:
    found = (path for path in job.outputs.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(job.outputs)) for path in found)


def adapter(job: TrainingJob) -> dict[str, Any]:
    return load_file(job.outputs / "adapter_model.safetensors")


def assert_trained_alike(job: TrainingJob, other: TrainingJob) -> None:
    names = ("loss", "eval_loss", "grad_norm", "learning_rate", "epoch")
    found, expected = log(job, *names), log(other, *names)
    assert len(found) == len(expected) == 8 + 1 + 4
    for line, wanted in zip(found, expected, strict=True):
        assert line == pytest.approx(wanted, abs=TOLERANCE)
    mine, theirs = adapter(job), adapter(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        assert float((mine[name] - tensor).abs().max()) < TOLERANCE, name
    assert outputs(job) == outputs(other)


def test_two_processes_train_as_one_with_the_same_global_batch(
    tiny_base: Path, dataset: Path, alone: TrainingJob, tmp_path: Path
) -> None:
    job = make_job(tiny_base, dataset, tmp_path, **FIELDS)
    reporter = Watching()
    outcome = train_in_processes(job, reporter, lambda: False)
    assert outcome is not None
    assert_trained_alike(job, alone)
    assert reporter.steps == list(range(9))
    assert processes_of(tmp_path) == {}
    assert outcome.metrics["last_loss"] == log(job, "loss")[-2][0]
    assert {gate.id for gate in outcome.gates} >= {"adapter-moved", "loss-is-real"}
    assert outcome.facts["training"]["steps"] == 8
    newest = newest_intact(job.checkpoints, reporter.say)
    assert newest is not None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}


def test_who_watches_ends_both(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    """40 steps, and the word that ends them comes while the ranks go on."""
    fields = FIELDS | {"epochs": 20, "evaluate_every_fraction": 0.1}
    job = make_job(tiny_base, dataset, tmp_path, **fields)
    follows = Following(end_after=2)
    assert train_in_processes(job, Reporter(), lambda: False, follows) is None
    assert [progress for progress, _ in follows.seen[:2]] == [0.1, 0.2]
    assert processes_of(tmp_path) == {}
    assert outputs(job) == []
    step = sealed_steps(job.checkpoints)[0]
    assert 8 <= step < 40
    assert stop_reason(checkpoint_folder(job.checkpoints, step)) is None


def test_ranks_end_when_their_starter_is_killed(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """The next run waits for them: two that write into one workspace would spoil it."""
    job = make_job(tiny_base, dataset, tmp_path, **FIELDS)
    mailbox = Mailbox(job.scratch / "processes")
    with subprocess.Popen([sys.executable, "-c", START, job.model_dump_json()]) as starter:
        wait_until(lambda: len(ranks_at_work(tmp_path)) == 2, 120)
        starter.kill()
    # They were still importing: they would not have ended by themselves.
    wait_until(lambda: processes_of(tmp_path) == {}, 5)
    assert mailbox.wait_for_ranks(give_up=lambda: True)
    assert not mailbox.has_outcome()


@pytest.mark.slow
def test_killed_and_stopped_training_ends_bitwise_as_a_whole_one(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    fields = FIELDS | {"lora": {"r": 4, "alpha": 8, "dropout": 0.2}}
    whole = make_job(tiny_base, dataset, tmp_path / "whole", **fields)
    assert train_in_processes(whole, Watching(), lambda: False) is not None
    job = make_job(tiny_base, dataset, tmp_path / "parts", **fields)

    def kill_rank_1(step: int) -> None:
        if step == 4:
            ranks = {rank: pid for pid, rank in processes_of(tmp_path / "parts").items()}
            os.kill(ranks[1], signal.SIGKILL)

    with pytest.raises(ModelError, match=r"Process 1 of 2 .* was killed \(SIGKILL\)") as caught:
        train_in_processes(job, Watching(kill_rank_1), lambda: False)
    assert processes_of(tmp_path / "parts") == {}
    assert "rank-1.log" in str(caught.value)
    assert "Traceback" not in str(caught.value).splitlines()[0]

    stopping = Watching()
    asked = train_in_processes(job, stopping, lambda: 5 in stopping.steps)
    assert asked is None
    assert any("resuming after step" in line for line in stopping.said)
    stopped_at = sealed_steps(job.checkpoints)[0]
    assert 5 <= stopped_at < 8
    assert outputs(job) == []

    last = Watching()
    assert train_in_processes(job, last, lambda: False) is not None
    assert last.steps == list(range(stopped_at, 9))
    names = ("loss", "eval_loss", "grad_norm")
    assert log(job, *names) == log(whole, *names)
    for name, tensor in adapter(whole).items():
        assert adapter(job)[name].equal(tensor), name


@pytest.mark.slow
def test_shards_go_on_from_a_whole_checkpoint_and_end_as_one_process(
    tiny_base: Path, dataset: Path, alone: TrainingJob, tmp_path: Path
) -> None:
    """FSDP2. A checkpoint of shards holds whole tensors, so one of a single process will do."""
    first = make_job(tiny_base, dataset, tmp_path, **ALONE)
    calls: list[None] = []
    assert run_job(first, lambda: calls.append(None) or len(calls) == 3) is None
    assert sealed_steps(first.checkpoints)[0] == 3
    job = make_job(tiny_base, dataset, tmp_path, **FIELDS, sharding="fsdp2")
    reporter = Watching()
    assert train_in_processes(job, reporter, lambda: False) is not None
    assert reporter.steps == list(range(3, 9))
    assert_trained_alike(job, alone)
    assert_same_checkpoint(job, alone)


def assert_same_checkpoint(job: TrainingJob, other: TrainingJob) -> None:
    import torch

    states = []
    for one in (job, other):
        newest = newest_intact(one.checkpoints, print)
        assert newest is not None
        states.append(torch.load(newest / "optimizer.pt", weights_only=True)["state"])
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        for name, value in state.items():
            torch.testing.assert_close(states[0][number][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_rank_s_error_is_raised_here(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    job = make_job(tiny_base, dataset, tmp_path, **FIELDS | {"per_device_batch_size": 12})
    few = write_dataset(tmp_path / "few", train=1)
    with pytest.raises(DataError, match=r"sft\.processes"):
        train_in_processes(job.model_copy(update={"dataset": few}), Reporter(), lambda: False)


def test_what_an_outcome_says_survives_the_way_back(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path / "mail")
    mailbox.clear()
    assert not mailbox.has_outcome()
    gates = [check("loss-is-real", float("nan"), "<", 1.5, "not real")]
    said = Outcome({"first_loss": float("inf"), "none": None}, gates, {"n": 1}, {"train": 0.5})
    mailbox.put_outcome(said)
    heard = mailbox.outcome()
    assert heard is not None
    assert repr(heard) == repr(said)
    mailbox.put_outcome(None)
    assert mailbox.has_outcome()
    assert mailbox.outcome() is None


def test_a_job_survives_the_way_there(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    """Fields that must not stand beside each other stay unsaid."""
    job = make_job(tiny_base, dataset, tmp_path, epochs=3)
    section = STAGE.section.model_validate({"max_steps": 3, "batch_tokens": 64, "method": "full"})
    job = job.model_copy(update={"section": section})
    mailbox = Mailbox(tmp_path / "mail")
    mailbox.clear()
    mailbox.put_job(job)
    assert mailbox.job() == job


@pytest.mark.parametrize(
    ("failures", "deaths", "blamed"),
    [
        # Rank 1 was killed; rank 0 lost it, raised, or was ended by the launcher.
        (
            {0: RuntimeError("peer is gone")},
            {0: 1, 1: -9},
            r"Process 1 of 2 .* killed \(SIGKILL\)",
        ),
        ({}, {0: -15, 1: -11}, r"Process 1 of 2 .* killed \(SIGSEGV\)"),
        # Rank 1 raised first, and rank 0 by it; or the launcher ended rank 0.
        ({1: RuntimeError("no"), 0: RuntimeError("peer")}, {0: 1, 1: 1}, r"Process 1 of 2"),
        ({1: RuntimeError("no")}, {0: -15, 1: 1}, r"Process 1 of 2 .* exit code 1"),
        ({}, {}, r"launcher of 2 processes was killed \(SIGKILL\)"),
        ({1: GateError("its own words")}, {1: 3}, "^its own words$"),
    ],
)
def test_the_process_that_failed_first_is_blamed(
    tmp_path: Path, failures: dict[int, Exception], deaths: dict[int, int], blamed: str
) -> None:
    mailbox = Mailbox(tmp_path)
    mailbox.log(1).write_text("".join(f"line {number}\n" for number in range(100)))
    for rank, error in failures.items():
        mailbox.put_failure(rank, error)
    if deaths:
        mailbox.put_deaths(deaths)
    error = failure_of(mailbox, 2, exit_code=-9 if not deaths else 1)
    with pytest.raises(type(error), match=blamed):
        raise error
    assert error.exit_code == (3 if isinstance(error, GateError) else 2)
    if 1 in deaths and error.exit_code == 2:
        assert str(error).endswith("| line 99")
        assert "line 50" not in str(error)


SHARDED = {"per_device_batch_size": 1, "processes": 2, "sharding": "fsdp2"}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (SHARDED | {"optimizer": "adamw_8bit"}, "adamw_8bit does not work on weights in shards"),
        (SHARDED | {"method": "qlora"}, "storage_dtype: shards must be floating-point"),
        (SHARDED | {"lora": {"init_lora_weights": "pissa"}}, "pissa changes the base"),
        (SHARDED | {"lora": {"train_embeddings": True}}, "train_embeddings: it is not done"),
        (SHARDED | {"sharding": "none", "on_oom": "shrink"}, "one process only"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        STAGE.check(STAGE.section.model_validate(fields), frozenset())


def test_what_several_processes_can_do_is_not_refused() -> None:
    quantization = {"storage_dtype": "bfloat16"}
    for fields in (
        SHARDED,
        SHARDED | {"method": "qlora", "quantization": quantization},
        SHARDED | {"method": "full"},
        SHARDED | {"sharding": "none", "optimizer": "adamw_8bit"},
    ):
        STAGE.check(STAGE.section.model_validate(fields), frozenset())
