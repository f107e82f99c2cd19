"""Loading tokenizers and models from sealed folders: local files, safetensors, no remote code."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.libraries import quick_imports, quiet_libraries
from luthier.models.quantization import (
    DType,
    Quantization,
    QuantizationSection,
    bitsandbytes_config,
    keep_layout,
    quantization_section,
)
from luthier.models.shared_base import load_private, load_shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DType",
    "Quantization",
    "is_whole_model",
    "load_model",
    "load_tokenizer",
    "pick_device",
]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder.

    Raises:
        ModelError: the folder has no tokenizer that loads without remote code.
    """
    quiet_libraries()
    from transformers import AutoTokenizer

    if not any(
        (folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise ModelError(
            f"{folder}: no tokenizer here (tokenizer.json, tokenizer.model or vocab.json). "
            "Copy the base model's tokenizer files beside its weights."
        )
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{folder}: its tokenizer does not load: {error}") from error


def is_whole_model(folder: Path) -> bool:
    """Whether a trained artifact is a model of its own and not an adapter for a base."""
    return not (folder / "adapter_config.json").exists() and (folder / "config.json").exists()


def pick_device() -> str:
    """`cuda` when there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _place(device: str) -> str | int:
    """A GPU by number: of several processes each has its own, and accelerate 1.15 refuses a
    quantised base that is on another than its process's."""
    import torch

    found = pick_device() if device == "auto" else device
    return torch.cuda.current_device() if found == "cuda" else found


def load_model(
    folder: Path,
    *,
    dtype: DType = "float32",
    adapter: Path | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
    private: bool = False,
) -> "PreTrainedModel":
    """The causal language model of `folder`, in eval mode, with `adapter` on it when one is given.

    An `adapter` folder without adapter_config.json is a whole model, as full fine-tuning writes
    it: that one is loaded. With `quantization` linear weights are kept in 4 or 8 bits. Within
    `sharing_bases` weights can be in memory that others use later, unless `private`: for a caller
    that trains them.

    Raises:
        ModelError: the folder does not hold a causal language model in safetensors, or the whole
            model of `adapter` shall be quantised.
    """
    if adapter is not None and is_whole_model(adapter):
        if quantization is not None:
            raise ModelError(
                f"{adapter}: it was trained in full, on a base that is not quantised."
            )
        folder, adapter, private = adapter, None, True  # no other trial asks for it
    with quick_imports():
        quiet_libraries()
        from transformers import AutoModelForCausalLM  # noqa: F401, `_load` finds it loaded

        if adapter is not None:
            from peft import PeftModel

    place = _place(device)
    section = None if quantization is None else quantization_section(quantization)
    load = partial(_load, folder, dtype, section, place)
    if private:
        model = load_private(load)
    else:
        model = load_shared((folder.resolve(), dtype, repr(section), place), load)
    if adapter is not None:
        model = PeftModel.from_pretrained(
            model, str(adapter), torch_device=str(model.device), autocast_adapter_dtype=False
        )
    model.eval()
    return model


def _load(
    folder: Path, dtype: DType, quantization: QuantizationSection | None, place: str | int
) -> "PreTrainedModel":
    """The model of a folder, without an adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": {"": place}}
    if quantization is not None:
        options["quantization_config"] = bitsandbytes_config(quantization, dtype)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the model does not load: {error}") from error
    if quantization is not None:
        keep_layout(model)
    return model
