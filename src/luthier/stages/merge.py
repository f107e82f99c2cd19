"""Stage `merge`: one model out of base and adapter, and the proof that it is the same function."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.config import Field, Section
from luthier.data.dataset import load_split, split_files
from luthier.gates import Gate, check
from luthier.models.loading import DType, Quantization, is_whole_model, load_model
from luthier.models.merging import dequantised_weights, merge
from luthier.models.parity import largest_logit, max_logit_difference, probe_logits
from luthier.models.quantization import quantization_section
from luthier.models.weights import describe_weights
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace
from luthier.training.loss import mean_loss

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel

    from luthier.data.rows import Split

BaseWeights = Literal["original", "dequantized"]
# Relative to the largest logit. Rounding in float32 gives up to 5e-6 on SmolLM2 (2e-4 absolute on
# logits near 45), weights cast to float16 some 1e-3, a forgotten or doubled update far more.
MAX_RELATIVE_DIFFERENCE = 5e-5
PROBE_ROWS = 16
SCORED_ROWS = 128


class MergeSection(Section):
    """Merging the adapter into the base."""

    base_weights: Literal["auto", "original", "dequantized"] = Field(
        "auto",
        description="for QLoRA: the base as stored, or as its 4-bit form decodes; auto: the one "
        "with the lower validation loss",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the merged weights; auto: the base's. Merged in float32, cast once"
    )


def run(section: MergeSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Merge each candidate, keep the better, compare with base + adapter after a fresh load."""
    rows = _held_out(inputs["dataset"].path)
    scored = rows.select(range(min(SCORED_ROWS, len(rows))))
    candidates = _candidates(section, inputs)
    losses: dict[str, float] = {}
    reports: dict[str, dict[str, Any]] = {}
    with workspace.reporter.task("merging", len(candidates) + 1) as task:
        for candidate in candidates:
            folder = _candidate_folder(workspace, candidate)
            reports[candidate] = _merge(inputs, candidate, folder, "float32")
            if len(candidates) > 1:
                losses[candidate] = mean_loss(load_model(folder), scored)
            workspace.raise_if_stopped()
            task.advance()
        kept = min(candidates, key=lambda candidate: losses.get(candidate, 0.0))
        for path in _candidate_folder(workspace, kept).iterdir():
            path.replace(workspace.path / path.name)
        gates, metrics = _parity(inputs, kept, workspace.path, rows)
        dtype = (
            inputs["base"].manifest.facts["dtype"] if section.dtype == "auto" else section.dtype
        )
        if dtype != "float32":
            metrics["cast_max_abs_logit_difference"] = _cast(inputs, kept, workspace, dtype, rows)
        task.advance()
    return StageResult(
        metrics={"validation_loss": losses} | metrics,
        gates=gates,
        facts={"base_weights": kept, "candidates": reports}
        | describe_weights(workspace.path)
        | {"stop_token_ids": inputs["base"].manifest.facts["stop_token_ids"]},
    )


def _held_out(dataset: Path) -> "datasets.Dataset":
    """Rows that were not trained on, where there are any."""
    splits: tuple[Split, ...] = ("validation", "test", "train")
    held_out = next(split for split in splits if split_files(dataset, split))
    return load_split(dataset, held_out, ["input_ids", "labels"])


def _quantization(inputs: StageInputs) -> Quantization | None:
    quantization: Quantization | None = inputs["adapter"].manifest.facts["training"][
        "quantization"
    ]
    return quantization


def _candidates(section: MergeSection, inputs: StageInputs) -> Sequence[BaseWeights]:
    if _quantization(inputs) is None:
        return ["original"]
    return (
        ["original", "dequantized"] if section.base_weights == "auto" else [section.base_weights]
    )


def _candidate_folder(workspace: Workspace, candidate: BaseWeights) -> Path:
    return workspace.scratch / f"merged-{candidate}"


def _merge(
    inputs: StageInputs, candidate: BaseWeights, folder: Path, dtype: DType
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = inputs["base"].path
    replaced = None
    if candidate == "dequantized":
        replaced = dequantised_weights(base, _quantization(inputs) or "nf4")
    return asdict(merge(base, inputs["adapter"].path, folder, dtype=dtype, replaced=replaced))


def _parity(
    inputs: StageInputs, kept: BaseWeights, merged: Path, rows: "datasets.Dataset"
) -> tuple[list[Gate], dict[str, Any]]:
    """F27: the merged model's logits against base + adapter, and against the base alone."""
    probes = rows["input_ids"][:PROBE_ROWS]
    model = _trained(inputs, kept)
    adapted = probe_logits(model, probes)
    if is_whole_model(inputs["adapter"].path):
        base = probe_logits(load_model(inputs["base"].path), probes)
    else:
        with model.disable_adapter():
            base = probe_logits(model, probes)
    del model
    found = probe_logits(load_model(merged), probes)
    difference = max_logit_difference(adapted, found)
    change = max_logit_difference(base, found)
    scale = max(largest_logit(adapted), 1.0)
    detail = (
        f"largest logit difference over the largest logit, {len(probes)} held-out rows, float32"
    )
    gates = [
        check("merge-parity", difference / scale, "<=", MAX_RELATIVE_DIFFERENCE, detail),
        check(
            "merge-changed", change / scale, ">", MAX_RELATIVE_DIFFERENCE, f"{detail}; to the base"
        ),
    ]
    return gates, {
        "max_abs_logit_difference": difference,
        "max_abs_logit_change": change,
        "largest_logit": scale,
    }


def _trained(inputs: StageInputs, kept: BaseWeights) -> "PreTrainedModel":
    """Base + adapter, as the merged model must be.

    int8 rounds activations too, so a model with its weights is compared and not itself.
    """
    base, adapter, quantization = (
        inputs["base"].path,
        inputs["adapter"].path,
        _quantization(inputs),
    )
    if kept == "original" or quantization is None:
        return load_model(base, adapter=adapter)
    if quantization_section(quantization).type != "int8":
        return load_model(base, adapter=adapter, quantization=quantization)
    model = load_model(base, adapter=adapter)
    plain = model.get_base_model()
    for name, weight in dequantised_weights(base, quantization).items():
        module = plain.get_submodule(name.removesuffix(".weight"))
        getattr(module, "base_layer", module).weight.data.copy_(weight)
    return model


def _cast(
    inputs: StageInputs,
    kept: BaseWeights,
    workspace: Workspace,
    dtype: DType,
    rows: "datasets.Dataset",
) -> float:
    """Merge again, cast to `dtype`; the largest logit change that the cast brings."""
    probes = rows["input_ids"][:PROBE_ROWS]
    before = probe_logits(load_model(workspace.path), probes)
    folder = _candidate_folder(workspace, kept)
    _merge(inputs, kept, folder, dtype)
    for path in folder.iterdir():
        path.replace(workspace.path / path.name)
    return max_logit_difference(before, probe_logits(load_model(workspace.path), probes))


STAGE = Stage(
    name="merge",
    order=70,
    summary="merge the adapter into the base",
    makes="model",
    version=3,
    section=MergeSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("dpo", "sft")),
    ),
    packages=("torch", "transformers", "peft", "bitsandbytes", "safetensors"),
)
