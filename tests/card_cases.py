"""What the tests of card, README and upload share: facts of a bundle over a sample run."""

from typing import Any

from luthier.serving.bundle import BundleFacts
from luthier.serving.parity_tables import QuantizationParity
from luthier.store.artifact import Artifact
from report_cases import Sample

SLOTS = {
    "base": "base",
    "prepare": "dataset",
    "sft": "adapter",
    "baseline": "baseline",
    "evaluate": "evaluation",
    "merge": "model",
}


def parity(quantization: str = "q8_0", **changes: Any) -> QuantizationParity:
    fields: dict[str, Any] = {
        "quantization": quantization,
        "file": f"ollama/model-{quantization}.gguf",
        "size_bytes": 144_800_000,
        "texts_compared": 1312,
        "text_mismatches": 0,
        "chats_compared": 40,
        "chat_mismatches": 1,
        "answers_compared": 100,
        "answer_agreement": 0.99,
        "merged_score": 0.83,
        "served_score": 0.82,
        "score_difference": (-0.03, 0.01),
        "stopped": 1.0,
        "told_apart": 97,
        "served_as_tuned": 1.0,
        "mean_kl_nats": 0.00123,
        "p99_kl_nats": 0.0211,
        "token_agreement": 0.993,
        "modelfile": "ollama/Modelfile",
    }
    return QuantizationParity(**fields | changes)


def facts_of(sample: Sample, **changes: Any) -> BundleFacts:
    """Of a sample run, or of its artifacts changed: `artifacts` are by slot."""
    artifacts = {
        slot: sample.artifacts[stage] for stage, slot in SLOTS.items() if stage in sample.artifacts
    }
    fields: dict[str, Any] = {
        "name": "package-router",
        "artifacts": artifacts | changes.pop("artifacts", {}),
        "parity": [parity()],
        "stop_tokens": ["<|im_end|>"],
        "context_tokens": 2048,
        "system_prompt": "Name the section.",
    }
    return BundleFacts(**fields | changes)


def changed(artifact: Artifact, **fields: Any) -> Artifact:
    """The same artifact with other fields in its manifest; `facts` are added to those there, None
    takes them all away."""
    if "facts" in fields:
        added = fields["facts"]
        fields["facts"] = {} if added is None else {**artifact.manifest.facts, **added}
    return Artifact(artifact.path, artifact.manifest.model_copy(update=fields))
