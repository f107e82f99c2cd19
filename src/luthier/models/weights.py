"""Weights as safetensors files: what is in them, without loading a model."""

import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
# torch's names for the codes in a safetensors header, of the types whose elements are whole bytes,
# in the order of their tensors in a file (safetensors 0.8 `torch.py`, and Dtype in `tensor.rs`).
DTYPES = {
    "I64": "int64",
    "F64": "float64",
    "F32": "float32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order: those its index names, or all.

    Raises:
        ModelError: the index names a file that is not there.
    """
    index = folder / INDEX_NAME
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise ModelError(f"{folder}: {INDEX_NAME} names {', '.join(missing)}, which is not there.")
    return [folder / name for name in sorted(names)]


@contextmanager
def opened(path: Path, framework: str = "pt") -> "Iterator[Any]":
    """A weight file, mapped into memory: tensors and slices of it are read when they are used.

    Raises:
        ModelError: it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error
    with file:
        yield file


def describe_weights(folder: Path) -> dict[str, Any]:
    """Architecture, parameters and dtypes, from config.json and the safetensors headers."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    elements: dict[str, int] = {}
    for path in weight_files(folder):
        with opened(path, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                piece = tensors.get_slice(name)
                dtype = DTYPES.get(piece.get_dtype(), piece.get_dtype().lower())
                elements[dtype] = elements.get(dtype, 0) + math.prod(piece.get_shape())
    return {
        "architecture": (config.get("architectures") or ["unknown"])[0],
        "parameters": sum(elements.values()),
        "dtype": max(elements, key=lambda dtype: elements[dtype]),
        "dtypes": elements,
    }


def shards(folder: Path) -> "Iterator[tuple[Path, dict[str, Tensor]]]":
    """One weight file after the other, its tensors on the CPU."""
    from safetensors.torch import load_file

    for path in weight_files(folder):
        yield path, load_file(path)


def copy_small_files(base: Path, folder: Path, *, left_out: "Collection[str]" = ()) -> None:
    """Copy all files of a model folder but weights and manifest, byte for byte and writable."""
    for path in sorted(base.iterdir()):
        is_small = path.suffix != ".safetensors" and path.name not in ("manifest.json", *left_out)
        if is_small and path.is_file():
            (folder / path.name).unlink(missing_ok=True)
            shutil.copyfile(path, folder / path.name)
            (folder / path.name).chmod(0o644)
