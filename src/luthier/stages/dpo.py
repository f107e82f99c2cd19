"""Stage `dpo`: preference optimisation, on from the SFT adapter, whose frozen state is the
reference."""

from luthier.errors import ConfigError
from luthier.models.adapter_files import read_lora_section
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import training_job, training_result
from luthier.store.artifact import Artifact, Workspace
from luthier.training.dpo_section import DPOSection
from luthier.training.session import train
from luthier.training.sft_section import SFTSection
from luthier.training.tracking import check_trackers


def run(section: DPOSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Train, or go on training, and write the adapter."""
    start = inputs.get("adapter")
    reference_inputs = {slot: inputs[slot].digest for slot in ("base", "preferences")}
    if start is not None:
        section = _on_from(section, start)
        reference_inputs["adapter"] = start.digest
    else:
        reference_inputs["fresh adapter"] = f"{section.lora.init_lora_weights}, seed {inputs.seed}"
    job = training_job(
        section, inputs, workspace, rows=inputs["preferences"], start=start
    ).model_copy(update={"shared": workspace.shared, "reference_inputs": reference_inputs})
    outcome = train(job, workspace.reporter, lambda: workspace.stop.requested)
    return training_result(outcome, workspace)


def _on_from(section: DPOSection, adapter: Artifact) -> DPOSection:
    """The section with the adapter's shape and its base's numerics, as they are and not as a
    config said them: the adapter may go on from another, and be of another run."""
    training = adapter.manifest.facts["training"]
    quantization = training["quantization"]
    brings = {
        "lora": read_lora_section(adapter.path),
        "dtype": training["dtype"],
        "method": "lora" if quantization is None else "qlora",
        "quantization": quantization or {},
        "per_device_batch_size": 1,  # which a section must have, and this one is not asked for
    }
    return section.on_from(SFTSection.model_validate(brings))


def _check(section: DPOSection, filled: frozenset[str]) -> None:
    """Whether the section and what it starts from belong together."""
    check_trackers(section)
    given = section.brought_by_sft()
    if given:
        raise ConfigError(
            f"dpo.{given[0]}: dpo goes on with the SFT adapter and its base as they are. Leave it "
            "out, or set dpo.reference: base to begin with a fresh adapter on the base."
        )
    if section.reference == "sft" and "adapter" not in filled:
        raise ConfigError(
            "dpo goes on with the SFT adapter, whose frozen state is its reference, and there is "
            "none: the config has no section sft. Add one, take an adapter with --input "
            "adapter=name/adapter@v1, or set dpo.reference: base to begin with a fresh adapter on "
            "the base."
        )
    if section.reference == "base" and "adapter" in filled:
        raise ConfigError(
            "dpo.reference: base begins with a fresh adapter on the base, and what sft learned "
            "would be lost. Leave out the section sft, or set dpo.reference: sft."
        )


STAGE = Stage(
    name="dpo",
    order=50,
    summary="go on from the SFT adapter with pairs of replies",
    makes="adapter",
    version=3,
    section=DPOSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("preferences", "preferences", ("preferences",)),
        Slot("adapter", "adapter", ("sft",), optional=True),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"),
    check=_check,
    checkpoints="checkpoints",
)
