"""What a sweep costs beside its trials, one after another in one process.

    python benchmarks/sweep_overhead.py configs/sweep_quickstart.yaml --machine "2-core EPYC"

The sweep of the config runs in a store of its own, with fewer rows, without pruning and test. Wall
time is from before the first trial's proposal to after the last one's end, the trials' seconds are
as the study keeps them. Loads of models inside trials are timed too: the share without them counts
them as no work at all.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import luthier.stages.training
import luthier.training.model
from luthier.progress import PlainReporter
from luthier.store import Store
from luthier.sweeping.plan import plan_sweep
from luthier.sweeping.study import Study
from luthier.sweeping.trial import Bench
from luthier.sweeping.working import make_shared, work


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = function(*arguments, **options)
        spent.append(time.perf_counter() - started)
        return found

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--machine", required=True, help="such as '2-core EPYC'")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--rows", type=int, default=192, help="to train on")
    given = parser.parse_args()
    overrides = [
        f"sweep.trials={given.trials}",
        "sweep.pruning=null",
        "sft.evaluate_every_fraction=0.5",
        f"prepare.limit={{train: {given.rows}, validation: 60}}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.config, overrides, Path(folder))
    found = {"machine": given.machine, "config": given.config, "overrides": overrides} | found
    name = f"sweep_overhead-{given.machine.lower().replace(' ', '-')}-{given.rows}-rows.json"
    path = Path(__file__).parent / "results" / name
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(path, json.dumps(found, indent=2))


def measure(config: str, overrides: list[str], root: Path) -> dict[str, Any]:
    bench = Bench(Study(plan_sweep(config, overrides), Store(root)), PlainReporter())
    make_shared(bench)
    loads: list[float] = []
    load = timed(luthier.training.model.load_model, loads)
    started = time.perf_counter()
    with (
        patch.object(luthier.training.model, "load_model", load),
        patch.object(luthier.stages.training, "load_model", load),
    ):
        work(bench)
    wall = time.perf_counter() - started
    seconds = [record.seconds for record in bench.study.records().values()]
    assert all(record.state == "done" for record in bench.study.records().values())
    return {
        "wall_seconds": round(wall, 2),
        "trial_seconds": [round(one, 2) for one in seconds],
        "load_seconds": [round(one, 2) for one in loads],
        "share_of_trials": round(sum(seconds) / wall, 4),
        "share_without_loads": round((sum(seconds) - sum(loads)) / wall, 4),
    }


if __name__ == "__main__":
    main()
