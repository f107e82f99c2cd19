"""The model that a job trains: its base, and what of it learns."""

from typing import TYPE_CHECKING

from luthier.errors import ModelError
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_adapter
from luthier.models.full_tuning import prepare_full, save_full
from luthier.models.loading import DType, is_whole_model, load_model, pick_device
from luthier.models.lora import attach, convert_at_whole_modules, keep_trainable_float32
from luthier.training.dpo_section import DPOSection
from luthier.training.job import TrainingJob
from luthier.training.section import TrainingSection
from luthier.training.sft_section import SFTSection

if TYPE_CHECKING:
    from pathlib import Path

    import datasets
    from torch import nn
    from transformers import PreTrainedModel


def base_dtype(section: TrainingSection) -> DType:
    """The numerics of the frozen base on this machine; what is trained is float32 in any case."""
    if section.dtype != "auto":
        return section.dtype
    return "bfloat16" if pick_device() == "cuda" else "float32"


def make_model(job: TrainingJob, rows: "datasets.Dataset") -> "PreTrainedModel":
    """The base with what is to be trained, fresh by the job's seed or as `job.start` has it.

    Args:
        job: which base, and how it is trained.
        rows: training rows, which some initialisations look at.

    Raises:
        ModelError: the base or the adapter cannot be used as the config says.
    """
    section = job.section
    if isinstance(section, SFTSection) and section.method == "full":
        if job.start is not None and not is_whole_model(job.start):
            raise ModelError(
                f"sft.start_from: {section.start_from} is an adapter, and sft.method: full trains "
                "a whole model. Set sft.method: lora or qlora to go on with it."
            )
        return prepare_full(load_model(job.base, dtype="float32", adapter=job.start, private=True))
    quantization = section.quantization if section.method == "qlora" else None
    model = load_model(job.base, dtype=base_dtype(section), quantization=quantization)
    if job.start is None:
        model = attach(model, section.lora, job.seed, rows=rows, base_folder=job.base)
    else:
        _refuse_whole(job.start, section)
        model = _go_on(model, job.start)
    if isinstance(section, DPOSection):
        _without_dropout(model)
    return model


def _refuse_whole(start: "Path", section: TrainingSection) -> None:
    if not is_whole_model(start):
        return
    if isinstance(section, SFTSection):
        raise ModelError(
            f"sft.start_from: {section.start_from} was trained in full, which is no adapter. "
            "Set sft.method: full to go on with it."
        )
    raise ModelError(
        "dpo goes on with an adapter, and sft.method: full made a whole model. Set sft.method: "
        "lora or qlora."
    )


def _without_dropout(model: "nn.Module") -> None:
    """Dropout would part the model from its reference, and the pairs' replies from each other
    (as trl 1.16 `trainer/utils.py` disable_dropout_in_model, and attention's own)."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _go_on(model: "PreTrainedModel", start: "Path") -> "PreTrainedModel":
    """The base with an earlier adapter, trainable."""
    from peft import PeftModel

    dtype = model.dtype
    adapted: PreTrainedModel = PeftModel.from_pretrained(
        model, str(start), is_trainable=True, torch_device=str(model.device)
    )
    keep_trainable_float32(adapted)
    convert_at_whole_modules(adapted, dtype)
    return adapted


def save_trained(model: "PreTrainedModel", job: TrainingJob) -> None:
    """Write what was trained as the artifact holds it: an adapter, or a whole model."""
    if job.section.method == "full":
        save_full(model, job.base, job.outputs)
    else:
        save_adapter(model, job.outputs, job.base_name)


def check_shapes(model: "PreTrainedModel", checkpoint: "Path") -> None:
    """Whether the weights of another run's checkpoint are those of `model`, by name and shape.

    Raises:
        ModelError: they are not; the message says where they differ first.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = checkpoint / ADAPTER_WEIGHTS
    if not path.exists() or not (checkpoint / ADAPTER_CONFIG).exists():
        raise ModelError(f"{checkpoint}: it is of another method. Fork with the same sft.method.")
    with safe_open(path, framework="pt") as stored:
        names = list(stored.keys())
        theirs = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    if differing:
        name = differing[0]
        raise ModelError(
            f"The forked checkpoint's adapter has another shape: {name} is "
            f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here. "
            "What shapes the adapter (sft.lora) must stay as it was in a fork."
        )
