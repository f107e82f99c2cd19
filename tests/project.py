"""A whole project on a tiny random base, for tests that run the pipeline as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from warm_children import WarmPopen

UNTRAINED_GATES = (
    "beats-baseline",
    "gguf-answers",
    "gguf-score",
    "served-is-tuned",
    "stop-at-serve",
    "as-tuned",
)
# What dpo on a random base does to its answers shows nothing.
UNTRAINED_DPO_GATES = (
    "task-score-kept",
    "length-bias",
    "reward-accuracy",
    "likelihood-displacement",
)
ROOT = Path(__file__).parent.parent
SECTIONS = ROOT / "data" / "package_sections"


def write_project(folder: Path, base: Path, *, train: int = 48, test: int = 16) -> Path:
    """Data of three classes and a config with every stage; the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", 12), ("test", test)):
        rows = [
            line
            for line in (SECTIONS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            if json.loads(line)["label"] in ("games", "science", "fonts")
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(rows[:count]) + "\n", encoding="utf-8")
    config = {
        "name": "tiny-router",
        "base": {"model": str(base)},
        "prepare": {
            "task": "classification",
            "sources": [
                {"path": f"{split}.jsonl", "split": split}
                for split in ("train", "validation", "test")
            ],
            "system_prompt": "Name the section of this software package.",
            "max_length_tokens": 128,
        },
        "baseline": {"few_shot": 3},
        "sft": {
            "lora": {"r": 4, "alpha": 8},
            "learning_rate": 0.02,
            "epochs": 2,
            "per_device_batch_size": 6,
            "checkpoint_every_steps": 2,
        },
        "evaluate": {},
        "merge": {},
        "export": {"targets": ["vllm", "ollama"], "gguf_quantization": ["f16"], "probe_rows": 8},
        "accept": {"speed_rows": 2},
        # A random base learns little from 48 rows; its answers are near ties, which quantisation
        # and another order of additions may turn.
        "gates": dict.fromkeys(UNTRAINED_GATES, "warn"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def read_dpo_config(path: Path) -> dict[str, Any]:
    """The config of a project up to what dpo needs, for `preferences` and `dpo` to be added."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("baseline", "merge", "export", "accept"):
        del config[name]
    config["gates"] = dict.fromkeys(UNTRAINED_DPO_GATES, "warn")
    return config


def add_preferences(config: dict[str, Any], folder: Path, rows: dict[str, int]) -> None:
    """So many pairs of the scope policy for each split, and the section that prepares them."""
    for split, count in rows.items():
        source = ROOT / "data" / "scope_policy" / f"{split}.jsonl"
        kept = source.read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"pairs-{split}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    config["preferences"] = {
        "task": "preference",
        "sources": [{"path": f"pairs-{split}.jsonl", "split": split} for split in rows],
        "system_prompt": "Name the section of this software package.",
        "max_length_tokens": 256,
    }


def start(
    folder: Path, *arguments: str, store: str = "artifacts", popen: Any = WarmPopen
) -> "subprocess.Popen[str]":
    """`luthier ARGUMENTS` in `folder`, as a process of its own. With `subprocess.Popen` it and its
    children import the libraries for themselves."""
    process: subprocess.Popen[str] = popen(
        [sys.executable, "-m", "luthier", *arguments],
        cwd=folder,
        env=os.environ | {"LUTHIER_STORE": store, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def luthier(
    folder: Path, *arguments: str, store: str = "artifacts", popen: Any = WarmPopen
) -> "subprocess.CompletedProcess[str]":
    """Run `luthier ARGUMENTS` in `folder` to its end."""
    process = start(folder, *arguments, store=store, popen=popen)
    output, errors = process.communicate(timeout=500)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
