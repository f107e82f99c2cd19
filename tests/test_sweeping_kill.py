"""Sweeps that are killed, and several processes on one: the same end, nothing run twice."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.sweeping.state import read_state
from project import luthier, start
from sweep_cases import change, read, rewrite, study_of, table, write_sweep
from sweep_child import SEALED, sweep_here
from warm_children import child_process, join

KILLS = 10


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep has run once, without a kill; `seconds.txt` says how long."""
    folder = tmp_path_factory.mktemp("whole")
    write_sweep(
        folder,
        tiny_base,
        trials=5,
        pruning={"kind": "median", "startup_trials": 2},
        finalists={"candidates": 2, "seeds": 2},
    )
    started = time.monotonic()
    join(child_process(sweep_here, folder))
    (folder / "seconds.txt").write_text(str(time.monotonic() - started))
    return folder


def fresh(whole: Path, folder: Path) -> Path:
    """The same project, where nothing was run yet."""
    ignored = shutil.ignore_patterns("artifacts", SEALED)
    return Path(shutil.copytree(whole, folder, ignore=ignored))


def sealed(folder: Path) -> list[str]:
    return (folder / SEALED).read_text(encoding="utf-8").split()


def ends(folder: Path) -> Counter[int]:
    """How often each trial was brought to an end, by the journal."""
    [journal] = folder.glob("artifacts/.sweeps/*/*/journal.log")
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return Counter(line["trial_id"] for line in lines if line["op_code"] == 6)


def outcome(folder: Path, patch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What must be the same with and without kills."""
    patch.chdir(folder)
    study = study_of(Path("run.yaml"))
    state = read_state(study)
    return table(study), state.winner, state.ranking, state.tested, state.looks


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fresh(whole, tmp_path / "killed")
    seconds = float((whole / "seconds.txt").read_text())
    rng, longest, kills = random.Random(8), seconds / 7, 0
    while kills < KILLS:
        process = child_process(sweep_here, folder)
        process.join(rng.uniform(0.2, longest))
        process.kill()
        process.join()
        kills += 1
        if process.exitcode == 0:  # faster than the whole one was: begin anew
            shutil.rmtree(folder)
            fresh(whole, folder)
            longest, kills = longest / 2, 0
    join(child_process(sweep_here, folder))
    assert outcome(folder, monkeypatch) == outcome(whole, monkeypatch)
    assert set(Counter(sealed(folder)).values()) == {1}
    assert set(ends(folder).values()) == {1}
    # Nothing is left over, and nothing was made under another key on the way.
    made = {path.name for path in folder.glob("artifacts/*/????????????????") if path.is_dir()}
    assert made == {path.name for path in whole.glob("artifacts/*/????????????????")}
    assert not list(folder.glob("artifacts/*/*.partial"))


@pytest.mark.slow
def test_two_processes_on_one_study_share_the_work(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fresh(whole, tmp_path / "both")
    change(folder / "run.yaml", sampler="random", pruning=None)
    workers = [child_process(sweep_here, folder) for _ in range(2)]
    for worker in workers:
        join(worker)
    monkeypatch.chdir(folder)
    state = read_state(study_of(Path("run.yaml")))
    assert [trial.state for trial in state.trials] == ["done"] * 5
    assert set(Counter(sealed(folder)).values()) == {1}
    assert set(ends(folder).values()) == {1}
    assert state.looks == 1


@pytest.mark.slow
def test_helpers_work_beside_the_command_and_stop_with_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fresh(whole, tmp_path / "helped")
    change(folder / "run.yaml", concurrency=2, sampler="random", pruning=None, trials=3)
    config = read(folder / "run.yaml")
    config["sft"]["epochs"] = 16  # long enough for the helper to start beside it
    rewrite(folder / "run.yaml", config)
    process = start(folder, "sweep", "run.yaml")
    deadline = time.monotonic() + 300
    # Two trials at work, as their locks say.
    while len(list(folder.glob("artifacts/sft/*.partial"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 4, output + errors
    done = luthier(folder, "sweep", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert "goes on" in done.stderr
    monkeypatch.chdir(folder)
    state = read_state(study_of(Path("run.yaml")))
    assert [trial.state for trial in state.trials] == ["done"] * 3
    assert set(ends(folder).values()) == {1}
