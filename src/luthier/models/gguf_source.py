"""A GGUF file as a base model: dequantised once to safetensors, its tokenizer repaired.

transformers imports a GGUF's tokenizer without the pre-tokenizer that `tokenizer.ggml.pre` names
(5.23: SmolLM2's loses its digit splitting, so "  12" becomes other ids than in llama.cpp and in
the original). Names and rules of pre-tokenizers: llama.cpp `src/llama-vocab.cpp`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models.libraries import quiet_libraries

GGUF_MAGIC = b"GGUF"

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "gpt-2": _BYTE_LEVEL,
}
# What transformers 5.23 writes of the loading itself, and a class name only it knows.
_TRANSIENT_TOKENIZER_KEYS = ("backend", "is_local", "local_files_only")
_PORTABLE_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def check_is_gguf(path: Path) -> None:
    """Raises ModelError unless `path` begins as a GGUF file does."""
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF').")


def import_gguf(source: Path, folder: Path) -> dict[str, str]:
    """Write `source` to `folder` as config, float32 safetensors, tokenizer and template.

    Returns its name and licence as the file states them ("" when it does not).

    Raises:
        ModelError: the file is no GGUF, is cut short, or is of an unknown architecture.
    """
    check_is_gguf(source)
    try:
        with _shared_reader():
            return _import(source, folder)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise ModelError(f"{source}: this GGUF cannot be read: {error}") from error


def _import(source: Path, folder: Path) -> dict[str, str]:
    quiet_libraries()
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = gguf.GGUFReader(str(source))
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, local_files_only=True
    )
    # The weights are plain float32 by now, yet 5.23 refuses to save what it still calls quantised.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder, safe_serialization=True)
    _repair_tokenizer(folder, _text(reader, "tokenizer.ggml.pre"))
    return {"name": _text(reader, "general.name"), "licence": _text(reader, "general.license")}


def _text(reader: Any, field: str) -> str:
    found = reader.get_field(field)
    return str(found.contents()) if found is not None else ""


def _repair_tokenizer(folder: Path, pre_tokenizer: str) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if pre_tokenizer in _PRE_TOKENIZERS:
        tokenizer["pre_tokenizer"] = _PRE_TOKENIZERS[pre_tokenizer]
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for key in _TRANSIENT_TOKENIZER_KEYS:
        config.pop(key, None)
    config["tokenizer_class"] = _PORTABLE_TOKENIZER_CLASS
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _shared_reader() -> Iterator[None]:
    """One parse of the file instead of transformers' four, and on plain arrays: 40 s become 10.

    gguf 0.19 slices a numpy memmap once a metadata string; the subclass gives it a plain view.
    """
    import gguf
    import numpy as np

    original_reader, original_map = gguf.GGUFReader, gguf.get_tensor_name_map

    class PlainReader(original_reader):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, value: Any) -> None:
            self._data = np.asarray(value)

    gguf.GGUFReader, gguf.get_tensor_name_map = cache(PlainReader), cache(original_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = original_reader, original_map
