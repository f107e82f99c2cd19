"""What tests of the cost model share: approaches, a config, and the artifacts of a sample run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from estimate_cases import real_config
from luthier.estimate.cost import Asked, Own
from luthier.evaluation.summary import summarize, write_summary
from luthier.pipeline import load_run
from luthier.planning import PlannedStep
from luthier.store import Artifact, Store
from report_cases import Sample, seal
from report_contents import LABELS, answers_of, info_of, write_dataset

# By hand: a request costs 1000 x 3 / 1e6 + 100 x 15 / 1e6 = 0.0045 USD at the API; the GPU
# answers 7,200 requests an hour at 1.8 USD, so 0.00025 USD each; 100 hours are paid anyway, so up
# to 720,000 requests cost 180 USD; training 1,200 USD over 12 months adds 100.
API = Asked("API", 1000, 100, 3.0, 15.0)
OWN = Own("own", 2.0, 1.8, 1200.0, gpu_hours_per_month=100)

COST: Mapping[str, Any] = {
    "priced_on": "2026-11-01",
    "api": {
        "price_usd_per_million_input_tokens": 3.0,
        "price_usd_per_million_output_tokens": 15.0,
    },
    "own": {"gpu": "rtx-4090", "price_usd_per_gpu_hour": 0.5},
}
STATED: Mapping[str, Any] = {
    **COST,
    "api": {**COST["api"], "prompt_tokens": 1000, "answer_tokens": 100},
    "own": {
        "price_usd_per_gpu_hour": 1.8, "requests_per_second": 2.0, "training_usd": 1200,
        "gpu_hours_per_month": 100,
    },
    "prompt_tokens": 150,
    "answer_tokens": 50,
}  # fmt: skip
TUNED_SPEED = {
    "request_seconds": {"p50": 0.1, "p95": 0.2}, "batched_requests_per_second": 3.5,
    "prompt_tokens_mean": 120.5, "answer_tokens_mean": 4.5,
}  # fmt: skip
SPEEDS = {
    "baseline": {
        "few-shot/generation": TUNED_SPEED | {"prompt_tokens_mean": 940.0},
        "zero-shot/generation": TUNED_SPEED | {"prompt_tokens_mean": 140.0},
    },
    "evaluate": {
        "sft/generation": TUNED_SPEED | {"batched_requests_per_second": 9.0},
        "tuned/likelihood": TUNED_SPEED | {"batched_requests_per_second": 99.0},
        "tuned/generation": TUNED_SPEED,
    },
}


def write_cost_config(folder: Path, cost: Mapping[str, Any], **sections: Any) -> Path:
    """A config of this cost section, and others."""
    path = folder / "run.yaml"
    text = yaml.safe_dump({"name": "router", "cost": dict(cost), **sections}, sort_keys=False)
    path.write_text(text.replace("'2026-11-01'", "2026-11-01"), encoding="utf-8")
    return path


def make_sample(folder: Path, cost: Mapping[str, Any]) -> Sample:
    """A run up to `evaluate` that never ran, on this machine's CPU: Qwen2.5-0.5B."""
    sources = [{"path": f"{split}.jsonl", "split": split} for split in ("train", "test")]
    path = write_cost_config(
        folder,
        cost,
        base={"model": "some/model"},
        prepare={"task": "classification", "sources": sources},
        baseline={"few_shot": 8},
        sft={"per_device_batch_size": 16},
        evaluate={},
    )
    sample = Sample(load_run(str(path), []), Store(folder / "artifacts"), {})
    info = info_of("classification", LABELS)
    config = json.dumps(real_config("Qwen2.5-0.5B-Instruct")).encode()
    seal(sample, "base", {"config.json": config})
    seal(sample, "prepare", {}, write=lambda out: write_dataset(out, info))
    answers = {
        name: answers_of(name, share, info.labels)
        for name, share in (("few-shot/generation", 0.4), ("zero-shot/generation", 0.2))
    }
    summary = summarize(info, answers, seed=7)
    for stage in ("baseline", "evaluate"):
        seal(
            sample,
            stage,
            {"measured/speed.json": json.dumps(SPEEDS[stage]).encode()},
            write=lambda out: write_summary(out, summary),
        )
    spent = {"train": 3000.0, "stage": 3600.0}
    seal(sample, "sft", {"adapter_config.json": b"{}"}, timings_seconds=spent)
    return sample


def steps_of(sample: Sample, *, without: tuple[str, ...] = (), gpu: str | None = None) -> Any:
    """The plan of a sample in which everything is there; measured on this GPU, None: a CPU."""
    return [
        PlannedStep(stage, "reuse", [], _measured_on(artifact, gpu))
        for stage, artifact in sample.artifacts.items()
        if stage not in without
    ]


def _measured_on(artifact: Artifact, gpu: str | None) -> Artifact:
    environment = artifact.manifest.environment.model_copy(update={"gpu": gpu})
    manifest = artifact.manifest.model_copy(update={"environment": environment})
    return replace(artifact, manifest=manifest)
