"""Sweeps on a tiny random base: a project, its study, and what is compared of the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from luthier.progress import Reporter
from luthier.store import Store
from luthier.sweeping.plan import plan_sweep
from luthier.sweeping.state import SweepState, read_state
from luthier.sweeping.study import Study
from luthier.sweeping.trial import Bench
from project import write_project

SWEEP: dict[str, Any] = {
    "objective": {"metric": "evaluate.accuracy"},
    "parameters": {
        "sft.learning_rate": {"log_uniform": [2e-3, 5e-2]},
        "sft.lora.r": {"choice": [2, 4]},
    },
    "trials": 4,
}


def write_sweep(folder: Path, base: Path, **sweep: Any) -> Path:
    """A project whose config has this sweep and no stage after evaluate; the config's path."""
    path = write_project(folder, base, train=24)
    config = read(path)
    for name in ("baseline", "merge", "export", "accept"):
        del config[name]
    config["sft"] |= {"lora": {"r": 4, "alpha": 8}, "evaluate_every_fraction": 0.25}
    config["sft"] |= {"checkpoint_every_steps": 3}
    config["evaluate"] = {"scoring": ["likelihood"], "speed_rows": 0}
    config["gates"] = {"validation-improves": "warn", "overfit": "warn"}
    config["sweep"] = SWEEP | sweep
    rewrite(path, config)
    return path


def read(path: Path) -> dict[str, Any]:
    """A config as it is written."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def rewrite(path: Path, config: dict[str, Any]) -> None:
    """Write a config."""
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def change(path: Path, **sweep: Any) -> None:
    """Change fields of the sweep of a config."""
    config = read(path)
    config["sweep"] |= sweep
    rewrite(path, config)


def study_of(path: Path, store: str = "artifacts") -> Study:
    """Of a config, in the current folder's store."""
    return Study(plan_sweep(str(path), []), Store(Path(store)))


def bench(path: Path, reporter: Reporter | None = None, store: str = "artifacts") -> Bench:
    """To run it with, in this process."""
    return Bench(study_of(path, store), reporter or Said())


class Said(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    @contextmanager
    def task(self, *_: object, **__: object) -> Iterator["Said"]:  # type: ignore[override]
        yield self

    def advance(self, count: int = 1, **facts: object) -> None:
        pass

    def resize(self, total: int, done: int = 0) -> None:
        pass


def table(study: Study) -> list[tuple[Any, ...]]:
    """What a sweep must come to whatever happened on the way: all but times."""
    state: SweepState = read_state(study)
    return [
        (
            trial.number,
            dict(trial.params),
            trial.state,
            list(trial.values),
            dict(trial.scores),
            trial.progress,
        )
        for trial in state.trials
    ]
