"""Sweeps of tiny-model trials, run in this process: search, seeds, pruning, failures, the test."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import call
from luthier.errors import ConfigError, InterruptedRunError, LuthierError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store import Store
from luthier.sweeping.jobs import next_job
from luthier.sweeping.plan import plan_sweep
from luthier.sweeping.running import run_sweep
from luthier.sweeping.slots import fitting, trial_slots
from luthier.sweeping.state import read_state
from sweep_cases import Said, bench, change, read, rewrite, study_of, table, write_sweep

RATES = {"sft.learning_rate": {"choice": [0.02, 1e-5, 2e-5]}}


@pytest.fixture(scope="module")
def swept(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep has run once, uninterrupted; its config's path."""
    folder = tmp_path_factory.mktemp("swept")
    path = write_sweep(folder, tiny_base, finalists={"candidates": 2, "seeds": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_sweep(bench(path))
    return path


@pytest.fixture
def again(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, base and dataset made, to do something with."""
    folder = tmp_path / "again"
    shutil.copytree(swept.parent, folder)
    monkeypatch.chdir(folder)
    return folder / swept.name


def kinds(store: str = "artifacts") -> dict[str, int]:
    """How many artifacts each stage has made."""
    found: dict[str, int] = {}
    for artifact in Store(Path(store)).artifacts():
        found[artifact.manifest.stage] = found.get(artifact.manifest.stage, 0) + 1
    return found


def splits() -> list[str]:
    return sorted(
        str(artifact.manifest.config["split"])
        for artifact in Store(Path("artifacts")).artifacts()
        if artifact.kind == "evaluation"
    )


def test_trials_share_base_and_data_and_the_test_rows_are_asked_once(again: Path) -> None:
    state = read_state(study_of(again))
    assert [trial.state for trial in state.trials] == ["done"] * 4
    # 4 candidates and a second seed of the best two; the winner's test needs no training.
    assert kinds() == {"base": 1, "prepare": 1, "sft": 6, "evaluate": 7}
    assert splits() == ["test"] + ["validation"] * 6
    assert state.tested is not None
    assert (state.tested.rows, state.looks, state.tested.number) == (16, 1, state.winner)
    assert state.ranking is not None
    assert state.ranking.rows == 12
    assert state.ranking.ranked[0].name == str(state.winner)
    seeds = {one.name: one.seeds for one in state.ranking.ranked}
    assert sorted(seeds.values()) == [1, 1, 2, 2]
    assert seeds[str(state.winner)] == 2


def test_trials_have_a_name_of_their_own_and_the_winner_the_configs(again: Path) -> None:
    names = {version.name for version in Store(Path("artifacts")).versions()}
    assert names == {"tiny-router.sweep", "tiny-router"}
    winner = Store(Path("artifacts")).resolve("tiny-router/adapter@latest")
    state = read_state(study_of(again))
    assert state.winner is not None
    wanted = state.trial(state.winner).params["sft.learning_rate"]
    assert winner.manifest.config["learning_rate"] == wanted
    assert winner.manifest.seed == 7


def test_a_finished_sweep_does_nothing_again_and_goes_on_when_more_is_asked(again: Path) -> None:
    before, artifacts = table(study_of(again)), kinds()
    run_sweep(bench(again))
    assert table(study_of(again)) == before
    assert kinds() == artifacts
    change(again, trials=5)
    run_sweep(bench(again))
    assert table(study_of(again))[:4] == before
    assert len(table(study_of(again))) == 5
    assert study_of(again).plan.key == plan_sweep(str(again), ["sweep.trials=4"]).key


def test_other_settings_or_data_are_another_study(again: Path) -> None:
    study = study_of(again)
    other = plan_sweep(str(again), ["sft.weight_decay=0.1"])
    assert other.key != study.plan.key
    # What is searched is no part of what the config fixes, and neither is what only a winner runs.
    assert plan_sweep(str(again), ["sft.learning_rate=0.5"]).key == study.plan.key
    with Path("train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(Path("train.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n")
    assert study_of(again).plan.key != study.plan.key


def test_an_identical_trial_is_reused_by_its_key(again: Path) -> None:
    first = table(study_of(again))
    shutil.rmtree(Path("artifacts") / ".sweeps")
    artifacts = kinds()
    run_sweep(bench(again))
    assert table(study_of(again)) == first
    assert kinds() == artifacts


@pytest.mark.usefixtures("again")
def test_the_best_config_runs_and_reuses_what_the_sweep_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifacts = kinds()
    assert call(["sweep", "best", "run.yaml", "--write", "best.yaml"]) == 0
    assert call(["run", "best.yaml", "--json"]) == 0
    said = capsys.readouterr().out
    stages = json.loads(said[said.index("{") :])["stages"]
    assert {stage["state"] for stage in stages} == {"reuse"}
    assert kinds() == artifacts
    assert "sweep" not in read(Path("best.yaml"))
    assert call(["sweep", "best", "run.yaml", "--write", "best.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert call(["sweep", "best", "run.yaml", "--trial", "99"]) == 2
    assert "Done are: 0, 1, 2, 3" in capsys.readouterr().err


@pytest.mark.usefixtures("again")
def test_commands_say_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["sweep", "status", "run.yaml"]) == 0
    said = capsys.readouterr().out
    assert "4 done, of 4 wanted" in said
    assert "16 test rows" in " ".join(said.split())
    assert call(["sweep", "status", "run.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["trials"]) == 4
    assert Path(found["report"]).exists()
    assert call(["sweep", "status", "run.yaml", "--set", "sft.weight_decay=0.5"]) == 2
    said = capsys.readouterr().err
    assert "no trial of this sweep was run yet" in said
    assert "studies of it with other settings" in said


def test_a_stop_keeps_what_is_done_and_the_end_is_the_same(again: Path) -> None:
    whole = table(study_of(again))
    for folder in ("sft", "evaluate", ".sweeps"):
        shutil.rmtree(Path("artifacts") / folder)
    stops = 0
    while True:
        stopping = bench(again, _StopsAt(11))
        assert isinstance(stopping.reporter, _StopsAt)
        stopping.reporter.stop = stopping.stop
        try:
            run_sweep(stopping)
            break
        except InterruptedRunError:
            stops += 1
    assert stops >= 3
    assert table(study_of(again)) == whole


class _StopsAt(Said):
    """Asks for a stop after some steps of training."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.stop = steps, StopFlag()

    def advance(self, count: int = 1, **facts: object) -> None:
        if "loss" in facts:
            self.steps -= count
            self.stop.requested = self.stop.requested or self.steps <= 0


def test_candidates_that_fall_behind_are_ended_and_leave_nothing(again: Path) -> None:
    change(
        again,
        parameters=RATES,
        sampler="grid",
        trials=3,
        finalists=None,
        pruning={"kind": "median", "startup_trials": 1},
    )
    state = run_sweep(bench(again))
    assert [trial.state for trial in state.trials] == ["done", "pruned", "pruned"]
    assert [trial.progress for trial in state.trials] == [1.0, 0.25, 0.25]
    assert state.winner == 0
    assert not list(Path("artifacts").glob("sft/*.partial"))
    # The config's own run is not refused for what they left, and is the winner's.
    assert call(["run", "run.yaml", "--until", "sft"]) == 0


def test_failures_and_failed_gates_keep_their_reason_and_stop_nothing(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(
        again,
        parameters={
            "sft.learning_rate": {"choice": [0.02, 1e-30]},
            "sft.gradient_accumulation_steps": {"choice": [1, 500]},
        },
        sampler="grid",
        trials=4,
        finalists=None,
    )
    config = read(again)
    del config["gates"]["validation-improves"]
    rewrite(again, config)
    state = run_sweep(bench(again))
    assert [trial.state for trial in state.trials] == ["done", "failed", "gate failed", "failed"]
    assert "Lower sft.gradient_accumulation_steps" in (state.trials[1].error or "")
    assert "validation-improves" in (state.trials[2].error or "")
    assert state.winner == 0
    assert call(["sweep", "status", "run.yaml"]) == 0
    assert "validation-improves" in capsys.readouterr().out
    # Asked for, failed trials are run again, and only those.
    artifacts = kinds()
    state = run_sweep(bench(again), retry_failed=True)
    assert [trial.state for trial in state.trials] == [
        *("done", "failed", "gate failed", "failed"),
        *("failed", "failed"),
    ]
    assert kinds() == artifacts


def test_a_sweep_of_which_everything_fails_ends_at_once(again: Path) -> None:
    change(
        again,
        parameters={"sft.gradient_accumulation_steps": {"int_uniform": [400, 500]}},
        trials=50,
        finalists=None,
    )
    with pytest.raises(LuthierError, match="every trial failed, trial 0 with") as caught:
        run_sweep(bench(again))
    assert "--retry-failed" in str(caught.value)
    assert len(study_of(again).trials()) == 3


def test_several_objectives_have_a_front(again: Path) -> None:
    change(
        again,
        objective=[{"metric": "sft.validation_loss"}, {"metric": "sft.adapter_bytes"}],
        parameters={"sft.lora.r": {"choice": [2, 4, 8]}},
        sampler="grid",
        finalists=None,
    )
    config = read(again)
    del config["evaluate"]
    rewrite(again, config)
    state = run_sweep(bench(again))
    assert len(state.trials) == 3
    sizes = [trial.values[1] for trial in state.trials]
    assert sizes == sorted(sizes)
    best = min(state.trials, key=lambda trial: trial.values[0])
    assert state.winner == best.number
    assert {0, best.number} <= set(state.front)
    assert state.tested is None
    assert call(["sweep", "status", "run.yaml"]) == 0


def test_seeds_of_a_candidate_are_averaged(again: Path) -> None:
    change(
        again,
        objective={"metric": "sft.validation_loss"},
        parameters={"sft.lora.r": {"choice": [2]}},
        seeds_per_candidate=2,
        finalists=None,
    )
    [trial] = run_sweep(bench(again)).trials
    assert sorted(trial.scores) == [7, 8]
    assert trial.values[0] == pytest.approx(sum(trial.scores.values()) / 2)
    assert trial.scores[7] != trial.scores[8]


@pytest.mark.parametrize(
    "budget", [{"max_hours": 1e-6}, {"max_cost_usd": 1e-6, "price_usd_per_hour": 2.0}]
)
def test_no_trial_begins_when_the_budget_is_used_up(again: Path, budget: dict[str, Any]) -> None:
    change(again, **budget, finalists=None, sampler="random")
    state = run_sweep(bench(again))
    assert [trial.state for trial in state.trials] == ["done"]
    assert state.over is not None
    assert next(iter(budget)) in state.over
    assert state.tested is not None


def test_a_dataset_without_validation_rows_is_refused_before_any_trial(again: Path) -> None:
    config = read(again)
    config["prepare"]["sources"].pop(1)
    del config["sft"]["evaluate_every_fraction"]
    rewrite(again, config)
    with pytest.raises(ConfigError, match="the dataset has none"):
        run_sweep(bench(again))
    assert study_of(again).trials() == []


def test_a_trial_that_nobody_works_on_any_more_is_taken_over(again: Path) -> None:
    change(again, trials=6)
    study = study_of(again)
    with study.deciding():
        job = next_job(study, study.try_lock)
    assert not isinstance(job, str)
    with study.deciding():  # another process, while the first lives
        other = next_job(study, study.try_lock)
    assert not isinstance(other, str)
    assert (job.number, other.number) == (4, 5)
    with study.deciding():
        assert next_job(study, study.try_lock) == "wait"
    job.claim.release()  # as the kernel does when it dies
    with study.deciding():
        taken = next_job(study, study.try_lock)
    assert not isinstance(taken, str)
    assert taken.number == 4
    taken.claim.release()
    other.claim.release()


def test_half_a_line_in_the_journal_is_taken_off(again: Path) -> None:
    before = table(study_of(again))
    journal = next(Path("artifacts").glob(".sweeps/*/*/journal.log"))
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 2, "study_id": 0, "user_a')
    study = study_of(again)
    assert table(study) == before
    study.note_spent(0, 7, 1.0)
    assert table(study_of(again)) == before
    assert study_of(again).spent(0, 7) == 1.0


def test_what_a_trial_made_and_is_gone_is_named(again: Path) -> None:
    shutil.rmtree(Path("artifacts") / "evaluate")
    with pytest.raises(LuthierError, match="no longer in the store"):
        read_state(study_of(again))


def test_hyperband_lets_the_best_of_a_rung_go_on(again: Path) -> None:
    # A rung at half of the run: one bracket, so all are compared with each other.
    config = read(again)
    config["sft"]["evaluate_every_fraction"] = 0.5
    rewrite(again, config)
    change(again, parameters=RATES, sampler="grid", finalists=None, pruning={"kind": "hyperband"})
    state = run_sweep(bench(again))
    assert [trial.state for trial in state.trials] == ["done", "pruned", "pruned"]
    assert [trial.progress for trial in state.trials] == [1.0, 0.5, 0.5]


def test_trials_at_once_on_this_machine(again: Path) -> None:
    assert trial_slots(study_of(again)) == (1, 0)
    change(again, concurrency="auto")
    assert trial_slots(study_of(again)) == (1, 0)
    change(again, concurrency=3)
    assert trial_slots(study_of(again)) == (3, 0)
    change(again, concurrency=30)
    assert trial_slots(study_of(again)) == (4, 0)


def test_trials_fit_by_predicted_memory() -> None:
    gb = 10**9
    assert fitting([24 * gb], 5 * gb) == 3
    assert fitting([24 * gb, 80 * gb], 5 * gb) == 3 + 12
    assert fitting([24 * gb], 40 * gb) == 1
    assert fitting([24 * gb, 24 * gb], None) == 2


def test_the_reporter_of_a_sweep_says_every_trial(again: Path) -> None:
    change(again, trials=5)
    said = Said()
    run_sweep(bench(again, said))
    assert any(line.startswith("trial 4 of 5: sft.learning_rate") for line in said.lines)
    assert any(line.startswith("trial 4 of 5: evaluate.accuracy") for line in said.lines)
    assert isinstance(said, Reporter)
