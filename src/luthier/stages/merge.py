"""Stage `merge`: one model out of base and adapter, and the proof that it is the same function."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator, model_validator

from luthier.config import Field, Section, result_free
from luthier.data.dataset import load_split, split_files
from luthier.evaluation.merge_candidates import Candidates, Measured, choose
from luthier.models.combining import NEEDS_DENSITY, Combination, Recipe, Weighted, combine
from luthier.models.loading import DType, Quantization
from luthier.models.merge_check import PROBE_ROWS, Merged, check_merge, tokenizer_gate
from luthier.models.merging import dequantised_weights, merge
from luthier.models.weights import describe_weights
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import base_as_trained, refuse_other_base
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.rows import Split

BaseWeights = Literal["original", "dequantized"]
_QUANTISED_DTYPES = ("nf4", "fp4", "int8", "int4", "fp8")


class MoreAdapter(Section):
    """Another adapter on the same base."""

    ref: str = Field(
        min_length=1,
        json_schema_extra=result_free,
        description="such as name/adapter@v2; its digest is in the key",
    )
    weight: float = Field(1.0, description="times its update")


class MergeSection(Section):
    """Merging the adapter into the base."""

    base_weights: Literal["auto", "original", "dequantized"] = Field(
        "auto",
        description="for QLoRA: the base as stored, or as its 4-bit form decodes; auto: both are "
        "measured, and the better is kept",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the merged weights; auto: the base's. Merged in float32, cast once"
    )
    scored_rows: int = Field(
        128, ge=1, description="for base_weights auto: held-out rows, and general texts, at most"
    )
    general_texts: Path | None = Field(
        None,
        description='for base_weights auto: JSON Lines with a "text" each, on which both bases '
        "are measured; null: none",
    )
    adapters: list[MoreAdapter] = Field(
        default_factory=list, description="others on the same base, merged with the run's own"
    )
    weight: float = Field(1.0, description="of the run's own adapter")
    combination: Combination = Field(
        "cat",
        description="of several adapters, as PEFT defines it; cat: the weighted sum of their "
        "updates, exactly; linear: of their matrices, which is no sum of updates",
    )
    density: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the entries that ties, dare_linear, dare_ties and magnitude_prune "
        "keep",
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _never_quantised(cls, value: object) -> object:
        if value in _QUANTISED_DTYPES:
            raise ValueError(
                f"{value} would quantise what was merged, which keeps some 1 % of a small update. "
                "Merge in 16 or 32 bits; export.gguf_quantization makes smaller files"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = self.combination in NEEDS_DENSITY
        if needs and self.density is None:
            raise ValueError(f"combination: {self.combination} needs density, such as 0.5")
        if not needs and self.density is not None:
            raise ValueError(f"density has no meaning for combination: {self.combination}")
        if self.combination != "cat" and not self.adapters:
            raise ValueError(f"combination: {self.combination} needs adapters to combine with")
        return self

    @property
    def combines(self) -> bool:
        """Whether what is merged is not the run's adapter as it is."""
        return bool(self.adapters) or self.weight != 1.0


@dataclass(frozen=True)
class _Job:
    """What is merged: the adapter's folder, and the type of what is written."""

    inputs: StageInputs
    adapter: Path
    dtype: DType
    workspace: Workspace

    @property
    def quantization(self) -> Quantization | None:
        """Of the base that the adapter was trained on."""
        found: Quantization | None = self.inputs["adapter"].manifest.facts["training"][
            "quantization"
        ]
        return found

    @property
    def trained_dtype(self) -> DType:
        """What the adapter was trained in, to which quantised weights decode."""
        found: DType = self.inputs["adapter"].manifest.facts["training"]["dtype"]
        return found

    def decoded(self) -> "Mapping[str, Tensor] | None":
        """The weights of the base as it was trained on, where it was quantised."""
        if self.quantization is None:
            return None
        base = self.inputs["base"].path
        return dequantised_weights(base, self.quantization, dtype=self.trained_dtype)

    def folder(self, candidate: BaseWeights) -> Path:
        """Where a candidate is written."""
        return self.workspace.scratch / f"merged-{candidate}"


def run(section: MergeSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Merge each candidate, keep the better, compare with base + adapter after a fresh load."""
    dtype = inputs["base"].manifest.facts["dtype"] if section.dtype == "auto" else section.dtype
    job = _Job(inputs, _adapter(section, inputs, workspace), dtype, workspace)
    candidates = _candidates(section, job)
    reports: dict[str, dict[str, Any]] = {}
    with workspace.reporter.task("merging", len(candidates)) as task:
        for candidate in candidates:
            reports[candidate] = _merge(job, candidate)
            workspace.raise_if_stopped()
            task.advance()
    kept, why, numbers = _choose(section, job, candidates)
    for path in job.folder(kept).iterdir():
        path.replace(workspace.path / path.name)
    merged = Merged(workspace.path, inputs["base"].path, job.adapter, dtype)
    if kept == "dequantized":
        merged = replace(
            merged,
            quantization=job.quantization,
            decoded=job.decoded(),
            trained_dtype=job.trained_dtype,
        )
    workspace.reporter.say("  checking the merged model in a new process")
    gates, metrics = check_merge(merged, _probes(inputs["dataset"].path), workspace)
    relative = reports[kept]["relative_delta_error"]
    return StageResult(
        metrics={**numbers, **metrics, "relative_delta_error": relative},
        gates=[*gates, tokenizer_gate(workspace.path, inputs["base"].path)],
        facts={
            "base_weights": kept,
            "candidates": reports,
            "trained_on": base_as_trained(inputs["adapter"]),
            "merged_into": _merged_into(kept, job),
            "kept_because": why,
            "combined": section.combines,
            "stop_token_ids": inputs["base"].manifest.facts["stop_token_ids"],
        }
        | describe_weights(workspace.path),
    )


def _adapter(section: MergeSection, inputs: StageInputs, workspace: Workspace) -> Path:
    """The run's own adapter, or what it makes together with the others."""
    own = inputs["adapter"]
    if not section.combines:
        return own.path
    others = inputs.several("adapters").values()
    for other in others:
        refuse_other_base(other, inputs["base"], "merge.adapters")
    weights = [section.weight, *(one.weight for one in section.adapters)]
    parts = [
        Weighted(one.path, one.ref, weight)
        for one, weight in zip([own, *others], weights, strict=True)
    ]
    folder = workspace.scratch / "combined"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    recipe = Recipe(section.combination, section.density, inputs.seed)
    combine(inputs["base"].path, parts, recipe, folder)
    return folder


def _candidates(section: MergeSection, job: _Job) -> Sequence[BaseWeights]:
    if job.quantization is None:
        return ["original"]
    return (
        ["original", "dequantized"] if section.base_weights == "auto" else [section.base_weights]
    )


def _merge(job: _Job, candidate: BaseWeights) -> dict[str, Any]:
    folder, base = job.folder(candidate), job.inputs["base"].path
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    replaced = job.decoded() if candidate == "dequantized" else None
    return asdict(merge(base, job.adapter, folder, dtype=job.dtype, replaced=replaced))


def _choose(
    section: MergeSection, job: _Job, candidates: Sequence[BaseWeights]
) -> tuple[BaseWeights, str, dict[str, Any]]:
    """The candidate to keep, why, and what was measured; of one candidate nothing is measured."""
    if len(candidates) == 1:
        return candidates[0], "no other base to merge into was asked for", {}
    scored = Candidates(
        job.inputs["dataset"].path,
        job.inputs["base"].path,
        rows=section.scored_rows,
        texts=section.general_texts,
        seed=job.inputs.seed,
    )
    measured: dict[str, Measured] = {
        candidate: scored.measure(candidate, job.folder(candidate), job.workspace)
        for candidate in candidates
    }
    name, why = choose(measured)
    job.workspace.reporter.say(f"  {why}")
    kept = next(candidate for candidate in candidates if candidate == name)
    return kept, why, scored.numbers(measured)


def _merged_into(kept: BaseWeights, job: _Job) -> str:
    if kept == "original":
        return f"the base as stored, in {job.inputs['base'].manifest.facts['dtype']}"
    return "the base as its quantised weights decode"


def _probes(dataset: Path) -> list[list[int]]:
    """Token ids of rows that were not trained on, where there are any."""
    splits: tuple[Split, ...] = ("validation", "test", "train")
    held_out = next(split for split in splits if split_files(dataset, split))
    rows = load_split(dataset, held_out, ["input_ids"])
    ids: list[list[int]] = rows.select(range(min(PROBE_ROWS, len(rows))))["input_ids"][:]
    return ids


def _files(section: MergeSection) -> Sequence[Path]:
    return [] if section.general_texts is None else [section.general_texts]


STAGE = Stage(
    name="merge",
    order=70,
    summary="merge the adapter into the base",
    makes="model",
    version=4,
    section=MergeSection,
    run=run,
    files=_files,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("dpo", "sft")),
        Slot("adapters", "adapter", optional=True, field="adapters"),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "bitsandbytes", "safetensors"),
)
