"""Sample runs for the report tests: sealed artifacts as the stages make them, without a model."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.config import RunConfig
from luthier.data.summary import DatasetInfo
from luthier.evaluation.answers import Answer, write_answers
from luthier.evaluation.statistics import compare
from luthier.evaluation.summary import summarize, write_summary
from luthier.evaluation.target import judge_target
from luthier.gates import Gate, check
from luthier.interrupts import StopFlag
from luthier.pipeline import load_run
from luthier.progress import Reporter
from luthier.store import (
    Artifact,
    ExternalFile,
    Identity,
    InputRef,
    ManifestDraft,
    Store,
    compute_key,
)
from luthier.store.manifest import ArtifactKind
from report_contents import (
    EVIL,
    LABELS,
    SPLIT_ROWS,
    answers_of,
    info_of,
    training_log,
    write_dataset,
)

KINDS: dict[str, ArtifactKind] = {
    "base": "base", "prepare": "dataset", "baseline": "evaluation", "sft": "adapter",
    "evaluate": "evaluation", "merge": "model", "export": "bundle",
}  # fmt: skip
SLOTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "prepare": ("base",),
    "baseline": ("base", "prepare"),
    "sft": ("base", "prepare"),
    "evaluate": ("base", "prepare", "sft", "baseline"),
    "merge": ("base", "prepare", "sft"),
    "export": ("merge", "prepare", "base"),
}


@dataclass
class Sample:
    """A run that never ran: its config, its store, and its artifacts by stage."""

    config: RunConfig
    store: Store
    artifacts: dict[str, Artifact]

    def until(self, stage: str) -> dict[str, Artifact]:
        names = list(self.artifacts)
        return {name: self.artifacts[name] for name in names[: names.index(stage) + 1]}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def seal(sample: Sample, stage: str, files: Mapping[str, bytes], **more: Any) -> Artifact:
    """Seal an artifact of these files and those that `write` writes."""
    inputs = [(slot, sample.artifacts[slot]) for slot in SLOTS[stage] if slot in sample.artifacts]
    section = sample.config.sections[stage]
    identity = Identity(
        stage=stage,
        stage_version=1,
        fields=section.key_fields(),
        inputs={slot: artifact.digest for slot, artifact in inputs},
        files=more.pop("external_files", []),
        seed=7,
        packages={"trl": "1.16.0"},
    )
    key = compute_key(identity)
    values = {
        "metrics": {}, "facts": {}, "gates": [], "timings_seconds": {"stage": 3.21},
        "config": section.model_dump(mode="json"),
    }  # fmt: skip
    write, kind = more.pop("write", None), more.pop("kind", KINDS[stage])
    draft = ManifestDraft(
        stage=stage,
        stage_version=1,
        kind=kind,
        key=key,
        name=sample.config.name,
        inputs=[
            InputRef(slot=slot, kind=a.kind, key=a.key, digest=a.digest, ref=a.ref)
            for slot, a in inputs
        ],
        external_files=list(identity.files),
        key_fields=dict(identity.fields),
        seed=7,
        key_packages=dict(identity.packages),
        **(values | more),
    )
    with sample.store.workspace(stage, key, Reporter(), StopFlag()) as workspace:
        if write is not None:
            write(workspace.path)
        write_files(workspace.path, files)
        sample.artifacts[stage] = sample.store.seal(workspace, draft)
    return sample.artifacts[stage]


def make_config(folder: Path, *, baseline: bool = True, task: str = "classification") -> RunConfig:
    sections = ["base: {model: some/model}"]
    sections.append(
        f"prepare: {{task: {task}, sources: [{{path: train.jsonl, split: train}}, "
        "{path: test.jsonl, split: test}]}"
    )
    if baseline:
        sections.append("baseline: {few_shot: 8, target: {metric: accuracy, value: 0.8}}")
    sections += ["sft: {per_device_batch_size: 16}", "evaluate: {}", "merge: {}", "export: {}"]
    path = folder / "router.yaml"
    path.write_text("\n".join(["name: package-router", *sections]) + "\n")
    return load_run(str(path), ["sft.learning_rate=5e-4"])


def make_run(
    store: Store,
    config: RunConfig,
    *,
    tuned: float = 0.83,
    prompted: float = 0.3,
    labels: Sequence[str] = LABELS,
) -> Sample:
    """All seven stages of a run."""
    sample = Sample(config, store, {})
    info = info_of(config.sections["prepare"].task, labels)  # type: ignore[attr-defined]
    seal(
        sample, "base", {"model.safetensors": bytes(5000), "config.json": b"{}"},
        gates=[check("tokenizer-parity", 0, "==", 0, "104 texts compared")],
        facts={"source": {"name": "some/model"}, "licence": "apache-2.0"},
    )  # fmt: skip
    raw = ExternalFile(path=f"data/{EVIL}.jsonl", size_bytes=123456, sha256="ab" * 32)
    seal(
        sample, "prepare", {}, write=lambda folder: write_dataset(folder, info),
        gates=[check("split-leakage", 0, "==", 0), check("quarantine-share", 0.009, "<=", 0.01)],
        external_files=[raw], metrics={"rows": SPLIT_ROWS},
    )  # fmt: skip
    baselines: dict[str, list[Answer]] = {}
    if "baseline" in config.sections:
        baselines = evaluate_baseline(sample, info, prompted)
    train(sample)
    evaluate_tuned(sample, info, tuned, baselines)
    merge_and_export(sample)
    return sample


def train(sample: Sample) -> None:
    files = {"adapter_model.safetensors": bytes(19000), "adapter_config.json": b"{}"}
    training = {
        "method": "lora", "steps": 94, "train_rows": 280, "dtype": "float32",
        "tokens_per_second": 812.4, "peak_memory_bytes": 1234567890,
    }  # fmt: skip
    seal(
        sample, "sft", files | {"measured/training_log.jsonl": training_log()},
        gates=[
            check("adapter-dtype", "float32", "==", "float32"),
            check("adapter-moved", 0.99871, ">=", 0.9),
        ],
        facts={"training": training}, timings_seconds={"train": 187.2, "stage": 195.9},
    )  # fmt: skip


def merge_and_export(sample: Sample) -> None:
    parity, changed = (
        check("merge-parity", 3.2e-6, "<=", 1e-4), check("merge-changed", 7.1, ">", 1e-4)
    )  # fmt: skip
    weights = {"model.safetensors": bytes(54000), "config.json": b"{}"}
    seal(sample, "merge", weights, gates=[parity, changed])
    bundle = {
        "vllm/model.safetensors": bytes(540), "vllm/serve.yaml": b"x: 1\n", "README.md": b"# x",
        "ollama/model-q8_0.gguf": bytes(14500), "ollama/Modelfile": b"FROM\n",
    }  # fmt: skip
    seal(
        sample, "export", bundle,
        metrics={"q8_0": {"answers_compared": 100, "served_score": 0.82, "merged_score": 0.83}},
        gates=[check("gguf-answers", 0.99, ">=", 0.98, "q8_0: 100 probes")],
        facts={"served_name": "package-router", "gguf": {"q8_0": "ollama/model-q8_0.gguf"}},
    )  # fmt: skip


def evaluate_baseline(sample: Sample, info: DatasetInfo, share: float) -> dict[str, list[Answer]]:
    answers = {
        name: answers_of(name, share - 0.02 * place, info.labels)
        for place, name in enumerate(("few-shot/generation", "zero-shot/generation"))
    }
    summary = summarize(info, answers, seed=7) | {"few_shot": 8}
    target = judge_target(summary, "accuracy", 0.8) if info.labels else None

    def write(folder: Path) -> None:
        write_answers(folder, [answer for found in answers.values() for answer in found])
        write_summary(folder, summary, target=target)

    seal(sample, "baseline", {}, write=write, metrics={"best_system": summary["best_system"]})
    return {summary["best_system"]: answers[summary["best_system"]]}


def evaluate_tuned(
    sample: Sample, info: DatasetInfo, share: float, baselines: dict[str, list[Answer]]
) -> None:
    name = "tuned/generation"
    answers = answers_of(name, share, info.labels)
    summary = summarize(info, {name: answers}, seed=7)
    paired, gates = None, list[Gate]()
    for old_name, old in baselines.items():
        paired = compare([a.correct for a in answers], [a.correct for a in old], alpha=0.05)
        summary["compared"] = {"new": name, "old": old_name}
        gates = [check("beats-baseline", paired.verdict, "==", "better", f"{name} & {old_name}")]

    def write(folder: Path) -> None:
        write_answers(folder, answers)
        write_summary(folder, summary, paired_test=paired)

    seal(sample, "evaluate", {}, write=write, gates=gates, metrics={"best_system": name})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A whole run, made once; `sample` gives each test a copy."""
    folder = tmp_path_factory.mktemp("finished")
    return make_run(Store(folder / "artifacts"), make_config(folder))


@pytest.fixture
def sample(finished: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """A whole run in `artifacts/` of the working directory."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("artifacts"))
    shutil.copytree(finished.store.root, store.root)
    found = {stage: store.find(made.key) for stage, made in finished.artifacts.items()}
    artifacts = {stage: artifact for stage, artifact in found.items() if artifact is not None}
    return Sample(make_config(tmp_path), store, artifacts)
