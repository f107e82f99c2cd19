"""`kill -9` at random moments of a training, and its end compared with that of one left alone.

    python benchmarks/kill_training.py --machine "2-core EPYC" [--kills 20] [--only NAME ...]
        [--seed 1] [--scratch FOLDER]

For each configuration of tests/kill_cases.py, on a tiny random Llama: a run that is left alone;
one that is stopped after every step, by SIGTERM and SIGINT in turn; then so many histories of one
to three SIGKILLs, after a random time or before a random change of the disk (fsync, rename,
unlink, torch.save, ...: inside saving), each gone on with to its end. Of several processes the
one that started them or one of them is killed. Every loss, rate, evaluation, gate and fact and
the digest of every output file must be the same.

Writes benchmarks/results/kill_training-MACHINE.json, what was measured for other configurations
stays in it; exit code 1 when an end differs.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kill_cases import CASES, History, Runs, write_inputs  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def measure(case: str, histories: int, seed: int, inputs: tuple[Path, Path]) -> dict[str, Any]:
    """One configuration: every history with its moments, and whether its end is the same."""
    base, dataset = inputs
    root = base.parent
    runs = Runs(case, root, base, dataset)
    # Two that are left alone: a training that differs from itself proves nothing.
    found: dict[str, Any] = {
        "configuration": case,
        "fields": CASES[case],
        "steps": runs.steps,
        "repeatable": runs.run("again") == runs.expected,
        "histories": [],
    }
    stops, result = runs.stopped_at_every_step("stopped")
    found["stopped_at_every_step"] = {"stops": stops, "equal": result == runs.expected}
    for number in range(histories):
        rng = random.Random(f"{seed} {case} {number}")
        name = f"killed-{number}"
        history = runs.killed(name, rng)
        found["histories"].append(_described(history, runs.expected))
        shutil.rmtree(root / case / name)
    return found | {
        "date": datetime.now(UTC).date().isoformat(),
        "equal": sum(not history["differs"] for history in found["histories"]),
        "kills": sum(len(history["kills"]) for history in found["histories"]),
    }


def _described(history: History, expected: dict[str, Any]) -> dict[str, Any]:
    moments = [str(moment) for moment in history.kills]
    differs = [name for name, value in expected.items() if history.result[name] != value]
    return {"kills": moments, "resumed_at": history.resumed_at, "differs": differs}


def machine(name: str) -> dict[str, Any]:
    """What it ran on."""
    return {
        "machine": name,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    name = re.sub(r"[^a-z0-9]+", "-", arguments.machine.lower()).strip("-")
    path = RESULTS / f"kill_training-{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["measured"] if path.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        inputs = write_inputs(Path(scratch))
        for case in arguments.only:
            found = measure(case, arguments.kills, arguments.seed, inputs)
            kept[case] = found
            resumed = sum(history["resumed_at"] > 0 for history in found["histories"])
            print(
                f"{case:24} {found['equal']} of {arguments.kills} the same, after "
                f"{found['kills']} kills; {resumed} resumed from a checkpoint at the end",
                flush=True,
            )
            stopped = found["stopped_at_every_step"]
            failed |= found["equal"] < arguments.kills
            failed |= not found["repeatable"] or not stopped["equal"]
            whole = machine(arguments.machine) | {"seed": arguments.seed, "measured": kept}
            path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
