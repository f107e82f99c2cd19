"""Faults put into a copy of a GGUF file in place: the same length, the same layout."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_EOS_KEY = b"tokenizer.ggml.eos_token_id"
_BOS_KEY = b"tokenizer.ggml.add_bos_token"
_UINT32_KIND, _BOOL_KIND = 4, 7


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a file lies: offset in bytes, shape (rows first), type."""

    tensors: Mapping[str, tuple[int, tuple[int, ...], Any]]


def layout_of(path: Path) -> Layout:
    from gguf import GGUFReader

    return Layout(
        {
            str(tensor.name): (tensor.data_offset, tensor.data.shape, tensor.data.dtype)
            for tensor in GGUFReader(path).tensors
        }
    )


class Patch:
    """A file's bytes, changed and written elsewhere."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.data, self.layout = bytearray(path.read_bytes()), layout

    def tensor(self, name: str) -> Any:
        """A view: what is written to it is in the file."""
        offset, shape, dtype = self.layout.tensors[name]
        count = int(np.prod(shape))
        return np.frombuffer(self.data, dtype, count, offset).reshape(shape)

    def each(self, change: Callable[[str, Any], Any], part: str = "") -> "Patch":
        """Tensors whose name has `part` become what `change` makes of them."""
        for name in self.layout.tensors:
            if part in name:
                view = self.tensor(name)
                view[:] = change(name, view.astype(np.float32)).astype(view.dtype)
        return self

    def end_token(self, token: int) -> "Patch":
        key = _EOS_KEY + struct.pack("<I", _UINT32_KIND)
        at = self.data.index(key) + len(key)
        self.data[at : at + 4] = struct.pack("<I", token)
        return self

    def adds_bos(self) -> "Patch":
        key = _BOS_KEY + struct.pack("<I", _BOOL_KIND)
        at = self.data.index(key) + len(key)
        assert self.data[at] == 0
        self.data[at] = 1
        return self

    def text(self, old: str, new: str) -> "Patch":
        """A text that stands once in the file, by one as long in bytes."""
        before, after = old.encode(), new.encode()
        assert len(before) == len(after)
        assert self.data.count(before) == 1
        at = self.data.index(before)
        self.data[at : at + len(before)] = after
        return self

    def template(self, old: str, new: str) -> "Patch":
        """The chat template, by one that is not longer; blanks after its first tag make it up."""
        blanks = " " * (len(old.encode()) - len(new.encode()))
        return self.text(old, new.replace("{%", "{%" + blanks, 1))

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path
