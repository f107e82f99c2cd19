"""A model without its weights: the names and kinds of its modules, at next to no memory."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ModelError
from luthier.models.libraries import quick_imports, quiet_libraries
from luthier.models.safetensors_stream import Stored, stored_tensors
from luthier.models.weights import weight_files

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def skeleton(folder: Path) -> "PreTrainedModel":
    """The causal language model of `folder` on torch's meta device.

    Raises:
        ModelError: its config.json is of no model that transformers has.
    """
    with quick_imports():
        quiet_libraries()
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the model does not load: {error}") from error


def is_conv1d(module: "nn.Module") -> bool:
    """Whether its weights are stored as (in, out), also where a quantised layer (out, in) stands
    in for it (transformers 5.23 `integrations/bitsandbytes.py`, source_cls)."""
    from transformers.pytorch_utils import Conv1D

    return issubclass(getattr(module, "source_cls", type(module)), Conv1D)


class StoredModel:
    """What a model folder holds, by the names that its modules have.

    Files of the model inside (GPT-2's on the hub) lack the outer module's name; transformers adds
    it when it loads them (`base_model_prefix`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {
            stored.name: stored for path in weight_files(folder) for stored in stored_tensors(path)
        }
        self.model = skeleton(folder)
        self._prefix = f"{self.model.base_model_prefix}."

    def file_name(self, name: str) -> str | None:
        """The name in the files of the tensor `name` of the model; None where there is none."""
        inner = name.removeprefix(self._prefix)
        return next((one for one in (name, inner) if one in self.tensors), None)

    def conv1d_names(self) -> list[str]:
        """Modules whose weights are stored as (in, out)."""
        return [name for name, module in self.model.named_modules() if is_conv1d(module)]

    def ties(self) -> dict[str, str]:
        """Tensors that are others' memory by the config, mostly the output head: its name, and
        that of the embeddings in the files."""
        tied: dict[str, str] = self.model.all_tied_weights_keys
        return {
            name: source
            for name, module_name in tied.items()
            if (source := self.file_name(module_name)) is not None
        }


def refuse_quantised(folder: Path) -> None:
    """Raises ModelError for a base that is stored quantised: merging into it would quantise again,
    which keeps some 1 % of a small update (FAILURES F28)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder}: this base is stored quantised (config.json: quantization_config), and an "
            "adapter merged into it would be lost in quantising again. Name the 16-bit base that "
            "it was made from as base.model, and merge into that."
        )
