"""Full fine-tuning: every weight is trained, and the artifact is a whole model folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.quantization import quantised_modules
from luthier.models.weights import INDEX_NAME, copy_small_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare_full(model: "PreTrainedModel") -> "PreTrainedModel":
    """Make every weight of `model` trainable, in float32 (FAILURES F14). Changes `model`.

    Raises:
        ModelError: the model is quantised.
    """
    if next(quantised_modules(model), None) is not None:
        raise ModelError(
            "sft.method: full trains every weight, and quantised weights cannot be trained. "
            "Use method: lora or qlora, or leave out quantization."
        )
    return model.float().requires_grad_(True)


def save_full(model: "PreTrainedModel", base_folder: Path, folder: Path) -> None:
    """Write `model` as a whole model folder, the same bytes for the same weights.

    Weights are float32 safetensors (tied ones once), all else the base's files byte for byte; only
    config.json's dtype becomes float32 where it was another.
    """
    # Only transformers knows the names that the stored weights of this architecture have.
    model.save_pretrained(str(folder), max_shard_size="5GB")
    # The base's index and shard names are not ours.
    copy_small_files(base_folder, folder, left_out=(INDEX_NAME,))
    config_path = folder / "config.json"
    config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
    dtype_key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(dtype_key) != "float32":
        config[dtype_key] = "float32"
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (base_folder / "generation_config.json").exists():
        (folder / "generation_config.json").unlink(missing_ok=True)
