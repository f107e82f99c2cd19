"""Trackers: all four get what the training log has, and write where they are told."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import ConfigError
from luthier.training import tracking
from luthier.training.sft_section import SFTSection
from luthier.training.tracking import check_trackers, tracker_arguments, tracking_environment
from training_cases import LIGHT, make_job, write_dataset

TRACKERS = ["tensorboard", "mlflow", "wandb", "trackio"]
TESTS = Path(__file__).parent
# They import much, start programs and keep state of their own: not in the process of the tests.
SCRIPT = """
import sys
from pathlib import Path
from training_cases import make_job, run_job
base, folder = Path(sys.argv[1]), Path(sys.argv[2])
tracking = {"to": sys.argv[3].split(","), "folder": str(folder / "tracking"), "project": "lute"}
job = make_job(base, folder / "rows", folder / "run", tracking=tracking, max_steps=3)
assert run_job(job) is not None
"""


def tensorboard_losses(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / "tensorboard" / "lute").iterdir()
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    return [event.value for event in accumulator.Scalars("train/loss")]


def mlflow_losses(folder: Path) -> list[float]:
    (path,) = (folder / "mlflow").glob("*/*/metrics/loss")
    return [float(line.split()[1]) for line in path.read_text().splitlines()]


def trackio_losses(folder: Path) -> list[float]:
    with sqlite3.connect(folder / "trackio" / "lute.db") as database:
        rows = database.execute("select metrics from metrics order by step").fetchall()
    logged = [json.loads(row[0]) for row in rows]
    return [entry["train/loss"] for entry in logged if "train/loss" in entry]


def test_every_tracker_gets_the_log(tiny_base: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "rows")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_base), str(tmp_path), ",".join(TRACKERS)],
        env=os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(TESTS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "standard output is for results"
    log = (tmp_path / "run" / "outputs" / "measured" / "training_log.jsonl").read_text()
    losses = [line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line]
    assert len(losses) == 3
    folder = tmp_path / "tracking"
    for found in (tensorboard_losses(folder), mlflow_losses(folder), trackio_losses(folder)):
        assert found == pytest.approx(losses, rel=1e-6)
    (kept,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    data = kept.read_bytes()
    assert all(repr(loss).encode() in data for loss in losses)


def test_trackers_are_off_by_default_and_the_environment_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_job(tmp_path, tmp_path, tmp_path / "a")
    assert tracker_arguments(plain) == {"report_to": []}
    fields: dict[str, Any] = {"to": ["mlflow"], "folder": str(tmp_path / "t")}
    job = make_job(tmp_path, tmp_path, tmp_path / "b", tracking=fields)
    assert tracker_arguments(job)["report_to"] == ["mlflow"]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    before = dict(os.environ)
    with tracking_environment(job):
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["WANDB_MODE"] == "offline"
        assert os.environ["MLFLOW_TRACKING_URI"].startswith("file:")
    assert dict(os.environ) == before
    online = make_job(tmp_path, tmp_path, tmp_path / "c", tracking=fields | {"offline": False})
    with tracking_environment(online):
        assert "MLFLOW_TRACKING_URI" not in os.environ


def _section(tracking: dict[str, Any] | None) -> SFTSection:
    return SFTSection.model_validate(LIGHT | {"tracking": tracking})


def test_a_tracker_that_is_not_installed_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers(_section(None))
    check_trackers(_section({"to": ["tensorboard"]}))
    monkeypatch.setitem(tracking._MODULES, "mlflow", "no_such_module")
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*pip install mlflow-skinny"):
        check_trackers(_section({"to": ["mlflow"]}))
