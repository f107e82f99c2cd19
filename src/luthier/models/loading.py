"""Loading tokenizers and models from sealed folders: local files, safetensors, no remote code."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import ModelError
from luthier.models.libraries import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["nf4"]


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


def pick_device() -> str:
    """`cuda` when there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    folder: Path,
    *,
    dtype: DType = "float32",
    adapter: Path | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> "PreTrainedModel":
    """The causal language model of `folder`, in eval mode, with `adapter` on it when one is given.

    `quantization="nf4"` keeps linear weights in 4-bit NormalFloat with double quantisation
    (QLoRA, arXiv 2305.14314) and computes in `dtype`.

    Raises:
        ModelError: the folder does not hold a causal language model in safetensors.
    """
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantization == "nf4":
        options["quantization_config"] = nf4_config(dtype)
    options["device_map"] = {"": pick_device() if device == "auto" else device}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the model does not load: {error}") from error
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, str(adapter), torch_device=str(model.device), autocast_adapter_dtype=False
        )
    model.eval()
    return model


def nf4_config(dtype: DType) -> Any:
    """bitsandbytes' settings for QLoRA: NF4, double quantisation, computing in `dtype`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
