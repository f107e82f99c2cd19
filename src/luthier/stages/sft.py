"""Stage `sft`: supervised fine-tuning on the prepared rows: LoRA, QLoRA, or every weight."""

from luthier.errors import ConfigError
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import training_job, training_result
from luthier.store.artifact import Workspace
from luthier.training.launch import train_in_processes
from luthier.training.session import train
from luthier.training.sft_section import SFTSection
from luthier.training.sharding import check_sharding
from luthier.training.tracking import check_trackers


def run(section: SFTSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Train, or go on training, and write the adapter."""
    job = training_job(
        section, inputs, workspace, rows=inputs["dataset"], start=inputs.get("start")
    )
    start_training = train if section.processes == 1 else train_in_processes
    outcome = start_training(
        job, workspace.reporter, lambda: workspace.stop.requested, workspace.watch
    )
    return training_result(outcome, workspace)


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
    version=3,
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
