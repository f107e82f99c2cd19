"""Stage `sft`: supervised fine-tuning on the prepared rows: LoRA, QLoRA, or every weight."""

from luthier.errors import ConfigError
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace
from luthier.training.job import TrainingJob
from luthier.training.launch import train_in_processes
from luthier.training.session import train
from luthier.training.sft_section import SFTSection
from luthier.training.sharding import check_sharding
from luthier.training.tracking import check_trackers


def run(section: SFTSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Train, or go on training, and write the adapter."""
    start = inputs.get("start")
    job = TrainingJob(
        name=inputs.name,
        seed=inputs.seed,
        section=section,
        base=inputs["base"].path,
        base_name=str(inputs["base"].manifest.facts["source"]["name"]),
        dataset=inputs["dataset"].path,
        start=start.path if start else None,
        fork=inputs.fork.checkpoint if inputs.fork else None,
        outputs=workspace.path,
        scratch=workspace.scratch,
    )
    start_training = train if section.processes == 1 else train_in_processes
    outcome = start_training(job, workspace.reporter, lambda: workspace.stop.requested)
    workspace.raise_if_stopped()
    assert outcome is not None, "training ends early only when it is asked to"
    return StageResult(outcome.metrics, outcome.gates, outcome.facts, outcome.timings_seconds)


def _check(section: SFTSection, _filled: frozenset[str]) -> None:
    check_trackers(section)
    check_sharding(section)
    if section.processes > 1 and section.on_oom == "shrink":
        raise ConfigError(
            "sft.on_oom: shrink works in one process only: the others would wait for the one that "
            "ran out of memory. With sft.processes, use smaller batches and "
            "sft.gradient_accumulation_steps."
        )


STAGE = Stage(
    name="sft",
    order=40,
    summary="fine-tune a LoRA or QLoRA adapter",
    makes="adapter",
    version=2,
    section=SFTSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("start", "adapter", optional=True, field="start_from"),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"),
    check=_check,
    checkpoints="checkpoints",
)
