"""What stages share that train, or use what was trained: jobs, results and models."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from luthier.errors import ConfigError
from luthier.models.loading import is_whole_model, load_model
from luthier.models.quantization import quantization_section
from luthier.stages.contract import StageInputs, StageResult
from luthier.store.artifact import Artifact, Workspace
from luthier.training.dpo_section import DPOSection
from luthier.training.job import Outcome, TrainingJob
from luthier.training.sft_section import SFTSection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


def training_job(
    section: SFTSection | DPOSection,
    inputs: StageInputs,
    workspace: Workspace,
    *,
    rows: Artifact,
    start: Artifact | None,
) -> TrainingJob:
    """The job of a stage that trains on `rows`, on from the adapter `start` where there is one."""
    return TrainingJob(
        name=inputs.name,
        seed=inputs.seed,
        section=section,
        base=inputs["base"].path,
        base_name=str(inputs["base"].manifest.facts["source"]["name"]),
        dataset=rows.path,
        start=start.path if start else None,
        fork=inputs.fork.checkpoint if inputs.fork else None,
        outputs=workspace.path,
        scratch=workspace.scratch,
    )


def training_result(outcome: Outcome | None, workspace: Workspace) -> StageResult:
    """What training measured, as the stage's result.

    Raises:
        InterruptedRunError: it was asked to stop.
        PrunedRunError: who watches it ended it.
    """
    workspace.raise_if_stopped()
    workspace.watch.raise_if_ended()
    assert outcome is not None, "training ends without an outcome only when asked"
    return StageResult(outcome.metrics, outcome.gates, outcome.facts, outcome.timings_seconds)


def load_trained(base: Artifact, adapter: Artifact) -> "PreTrainedModel":
    """The model that a stage trained, in the numerics that it was trained in."""
    training = adapter.manifest.facts["training"]
    return load_model(
        base.path,
        dtype=training["dtype"],
        adapter=adapter.path,
        quantization=training["quantization"],
    )


def base_as_trained(adapter: Artifact) -> str:
    """The base that an adapter was trained on, and is measured on by `load_trained`: in words."""
    training = adapter.manifest.facts["training"]
    if is_whole_model(adapter.path):
        return f"the model itself, in {training['dtype']}"
    if training["quantization"] is None:
        return f"the base in {training['dtype']}, as trained"
    return f"the base in {quantization_section(training['quantization']).type}, as trained"


@contextmanager
def without_adapter(
    model: "PreTrainedModel", base: Artifact, adapter: Artifact
) -> "Iterator[PreTrainedModel]":
    """The base of `load_trained`'s model, in the same numerics."""
    if is_whole_model(adapter.path):
        yield load_model(base.path, dtype=adapter.manifest.facts["training"]["dtype"])
        return
    with model.disable_adapter():
        yield model


def refuse_other_base(adapter: Artifact, base: Artifact, field: str) -> None:
    """Raises ConfigError for an adapter, named in `field`, of another base than the run's."""
    digests = {ref.digest: ref.ref for ref in adapter.manifest.inputs if ref.slot == "base"}
    if base.digest not in digests:
        [other] = digests.values() or ["another base"]
        raise ConfigError(
            f"{field}: {adapter.ref} was trained on {other}, which is not the base of this "
            f"run ({base.ref}). Adapters fit the base that they were trained on alone."
        )
