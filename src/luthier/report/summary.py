"""What a run came to: scores, the paired test, training, sizes, times, gates, how to serve it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import RunConfig
from luthier.gates import Gate, failures, judged
from luthier.report.comparison import seeds_beside
from luthier.report.dataset_rows import DATASET_KINDS
from luthier.report.effects import Effect, read_effects
from luthier.report.scores import Comparison, SystemScore, Target, read_scores
from luthier.report.verdict import Verdict, judge
from luthier.store import Artifact

if TYPE_CHECKING:
    from luthier.evaluation.several import SeedGroup
    from luthier.evaluation.shipping import ShipVerdict
    from luthier.store import Store

_ADAPTER_STAGES = ("dpo", "sft")  # the newest adapter first


@dataclass(frozen=True)
class StageGates:
    """The gates of one stage, as this run's config judges them."""

    stage: str
    gates: Sequence[Gate]


@dataclass(frozen=True)
class Command:
    """One way to serve the bundle; `lines` are typed one after another."""

    server: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Summary:
    """One run in numbers. What its stages did not make is empty or None."""

    name: str
    verdict: Verdict
    metric: str
    systems: Sequence[SystemScore]
    comparison: Comparison | None
    effects: Sequence[Effect]
    target: Target | None
    training: Mapping[str, Any]
    sizes_bytes: Mapping[str, int]
    seconds: Mapping[str, float]
    gates: Sequence[StageGates]
    bundle: Path | None
    serving: Sequence[Command]
    ship: "ShipVerdict | None" = None
    seeds: "SeedGroup | None" = None
    measured_on: str | None = None
    merged_into: str | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return asdict(self) | {
            "bundle": str(self.bundle) if self.bundle else None,
            "gates": {
                one.stage: [gate.model_dump(mode="json") for gate in one.gates]
                for one in self.gates
            },
        }


def summarise(
    config: RunConfig, artifacts: Mapping[str, Artifact], store: "Store | None" = None
) -> Summary:
    """Read what the stages of one run measured; `artifacts` are by stage, in pipeline order.

    With the `store` also what the same config came to with other seeds.
    """
    gates = [
        StageGates(stage, judged(artifact.manifest.gates, config.gates))
        for stage, artifact in artifacts.items()
        if artifact.manifest.gates
    ]
    scores = read_scores(artifacts)
    failed = {one.stage: failures(one.gates) for one in gates if failures(one.gates)}
    bundle = artifacts.get("export")
    return Summary(
        name=config.name,
        verdict=judge(scores, failed, _ready(artifacts)),
        metric=scores.metric,
        systems=scores.systems,
        comparison=scores.comparison,
        effects=read_effects(artifacts),
        target=scores.target,
        training=_training(artifacts),
        sizes_bytes=_sizes(artifacts),
        seconds={stage: _seconds(artifact) for stage, artifact in artifacts.items()},
        gates=gates,
        bundle=bundle.path if bundle else None,
        serving=_serving(bundle) if bundle else [],
        ship=scores.ship,
        seeds=seeds_beside(store, artifacts["evaluate"])
        if store and "evaluate" in artifacts
        else None,
        measured_on=_fact(artifacts, "evaluate", "measured_on"),
        merged_into=_fact(artifacts, "merge", "merged_into"),
    )


def _fact(artifacts: Mapping[str, Artifact], stage: str, name: str) -> str | None:
    return artifacts[stage].manifest.facts.get(name) if stage in artifacts else None


def _ready(artifacts: Mapping[str, Artifact]) -> Mapping[str, int]:
    """Rows of each split, where there is a dataset and nothing trained on it."""
    found = [artifact for artifact in artifacts.values() if artifact.kind in DATASET_KINDS]
    if not found or any(stage in artifacts for stage in _ADAPTER_STAGES):
        return {}
    rows: Mapping[str, int] = found[0].manifest.metrics.get("rows", {})
    return rows


def _training(artifacts: Mapping[str, Artifact]) -> Mapping[str, Any]:
    """What the newest adapter says of its training, with the seconds it took."""
    adapter = next((artifacts[stage] for stage in _ADAPTER_STAGES if stage in artifacts), None)
    if adapter is None:
        return {}
    manifest = adapter.manifest
    seconds = manifest.timings_seconds.get("train")
    timed = {} if seconds is None else {"seconds": seconds}
    return dict(manifest.facts.get("training", {})) | timed


def _seconds(artifact: Artifact) -> float:
    """How long the stage took when it was made."""
    times = artifact.manifest.timings_seconds
    return times.get("stage", sum(times.values()))


def _sizes(artifacts: Mapping[str, Artifact]) -> dict[str, int]:
    """Weights only: an adapter's, a merged model's, and each GGUF's."""
    sizes: dict[str, int] = {}
    for stage, artifact in artifacts.items():
        match artifact.kind:
            case "adapter":
                sizes["adapter" if stage == "sft" else f"adapter ({stage})"] = _weights(artifact)
            case "model":
                sizes["merged"] = _weights(artifact)
            case "bundle":
                sizes |= {
                    Path(file.path).name: file.size_bytes
                    for file in artifact.manifest.outputs
                    if file.path.endswith(".gguf")
                }
    return sizes


def _weights(artifact: Artifact) -> int:
    outputs = artifact.manifest.outputs
    return sum(file.size_bytes for file in outputs if file.path.endswith(".safetensors"))


def _serving(bundle: Artifact) -> list[Command]:
    """How to serve what the bundle holds."""
    files = {file.path for file in bundle.manifest.outputs}
    name = str(bundle.manifest.facts.get("served_name", bundle.manifest.name))
    commands = []
    if "vllm/serve.yaml" in files:
        folder = shlex.quote(str(bundle.path / "vllm"))
        settings = shlex.quote(str(bundle.path / "vllm" / "serve.yaml"))
        commands.append(Command("vLLM", [f"vllm serve {folder} \\", f"  --config {settings}"]))
    if "ollama/Modelfile" in files:
        modelfile = shlex.quote(str(bundle.path / "ollama" / "Modelfile"))
        lines = [f"ollama create {name} \\", f"  -f {modelfile} && \\", f"ollama run {name}"]
        commands.append(Command("Ollama", lines))
    return commands
