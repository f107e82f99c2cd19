"""Safetensors files read and written a few rows at a time.

The safetensors library (0.8) writes a file out of tensors that are all in memory. This writes the
same bytes piece by piece: eight bytes of the header's length (little endian), the header as JSON
padded with spaces to a multiple of eight, then every tensor's bytes without a gap
(https://github.com/huggingface/safetensors#format). Reading is the library's.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.weights import DTYPES, opened
from luthier.store.files import fsync_folder, temporary_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Float32 bytes of rows worked on at once: they stay in the processor's cache, and a table of
# 150,000 tokens needs no more memory than a small matrix. 4 MiB took 1.4 times the processor time.
PIECE_BYTES = 2**20
_PIECES_MAPPED = 32
_SYNC_BYTES = 64 * 2**20  # written before the disk is set to work on it, while more is computed


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what it is."""

    path: Path
    name: str
    dtype: "torch.dtype"
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows `read_rows` counts; of a tensor without dimensions one."""
        return self.shape[0] if self.shape else 1

    @property
    def rows_at_once(self) -> int:
        """How many rows make a piece."""
        return max(1, PIECE_BYTES // max(1, 4 * math.prod(self.shape[1:])))


def stored_tensors(path: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes, from its header.

    Raises:
        ModelError: it is no whole safetensors file, or has a dtype that torch does not have.
    """
    found = []
    with opened(path) as file:
        for name in file.offset_keys():
            piece = file.get_slice(name)
            dtype = DTYPES.get(piece.get_dtype())
            if dtype is None:
                raise ModelError(
                    f"{path}: {name} is {piece.get_dtype()}, which cannot be merged into. "
                    "Use the model's 16-bit or 32-bit weights."
                )
            found.append(Stored(path, name, _torch(dtype), tuple(piece.get_shape())))
    return found


def row_ranges(stored: Stored) -> Iterator[tuple[int, int]]:
    """Where the pieces of a tensor start and stop."""
    for start in range(0, stored.rows, stored.rows_at_once):
        yield start, min(start + stored.rows_at_once, stored.rows)


def read_pieces(stored: Stored) -> "Iterator[tuple[int, int, Tensor]]":
    """Start, stop and rows of each piece. The rows are pages of the file, not to be changed; the
    file is mapped again and again, so that few of its pages count as this process's."""
    if not stored.shape:
        yield 0, 1, read_tensor(stored)
        return
    ranges = list(row_ranges(stored))
    for first in range(0, len(ranges), _PIECES_MAPPED):
        with opened(stored.path) as file:
            rows = file.get_slice(stored.name)
            for start, stop in ranges[first : first + _PIECES_MAPPED]:
                yield start, stop, rows[start:stop]


def read_tensor(stored: Stored) -> "Tensor":
    """All of a tensor; pages of the file, not to be changed."""
    with opened(stored.path) as file:
        tensor: Tensor = file.get_tensor(stored.name)
        return tensor


@dataclass(frozen=True)
class Layout:
    """A tensor to be written."""

    name: str
    dtype: "torch.dtype"
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its data."""
        return int(math.prod(self.shape)) * self.dtype.itemsize


def in_file_order(layouts: Iterable[Layout]) -> list[Layout]:
    """By type, wide ones first, so that no tensor is misaligned; then by name."""
    order = {_torch(name): rank for rank, name in enumerate(DTYPES.values())}
    return sorted(layouts, key=lambda layout: (order[layout.dtype], layout.name))


def write_safetensors(path: Path, layouts: Sequence[Layout], pieces: "Iterable[Tensor]") -> None:
    """Write a file whole or not at all, and bring it to the disk.

    Args:
        path: an old file is replaced.
        layouts: the tensors, in the order of their bytes.
        pieces: their rows in the same order; each piece belongs to one tensor.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb", buffering=0) as stream:
            stream.write(_header(layouts))
            written = _write_and_sync(stream.fileno(), pieces)
            assert written == sum(layout.size_bytes for layout in layouts)
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _write_and_sync(descriptor: int, pieces: "Iterable[Tensor]") -> int:
    """Bytes written; what is left to be brought to the disk in the end is little."""
    written = waiting = 0
    with ThreadPoolExecutor(max_workers=1) as disk:
        last: Future[None] | None = None
        for piece in pieces:
            size = _write(descriptor, piece)
            written, waiting = written + size, waiting + size
            if waiting >= _SYNC_BYTES and (last is None or last.done()):
                last, waiting = disk.submit(os.fdatasync, descriptor), 0
    return written


def _header(layouts: Sequence[Layout]) -> bytes:
    codes = {_torch(name): code for code, name in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for layout in layouts:
        start, end = end, end + layout.size_bytes
        header[layout.name] = {
            "dtype": codes[layout.dtype],
            "shape": layout.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(descriptor: int, piece: "Tensor") -> int:
    """All of it: one call of `write` takes at most 2 GiB."""
    import torch

    flat: Any = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
    left = memoryview(flat)
    size = len(left)
    while left:
        left = left[os.write(descriptor, left) :]
    return size


def _torch(name: str) -> "torch.dtype":
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
