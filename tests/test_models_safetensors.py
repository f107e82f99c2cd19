"""Safetensors files written piece by piece are those that the library writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.safetensors_stream import (
    PIECE_BYTES,
    Layout,
    in_file_order,
    read_pieces,
    stored_tensors,
    write_safetensors,
)

TENSORS = {
    "b": torch.arange(12.0).reshape(3, 4),
    "a": torch.linspace(-2, 2, 7),
    "a scalar": torch.tensor(3.5),
    "nothing": torch.zeros(0, 4),
    "half": torch.arange(9).reshape(3, 3).to(torch.bfloat16),
    "ünïcode": torch.tensor([[1, 2], [3, 4]]).to(torch.bfloat16),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "bits": torch.tensor([True, False, True]),
    "signed": torch.tensor([-1, 2], dtype=torch.int8),
    "float16": torch.tensor([[1, 2, 3]], dtype=torch.float16),
    "int16": torch.tensor([1, 2, 3], dtype=torch.int16),
    "int32": torch.tensor([1, 2, 3], dtype=torch.int32),
    "int64": torch.tensor([[1, 2, 3]]),
    "double": torch.tensor([[1, 2, 3]], dtype=torch.float64),
    "large": torch.arange(3 * PIECE_BYTES // 8 + 5.0).reshape(-1, 1).repeat(1, 2),
}


def copied(source: Path, target: Path) -> None:
    stored = {one.name: one for one in stored_tensors(source)}
    layouts = in_file_order(Layout(one.name, one.dtype, one.shape) for one in stored.values())
    pieces = (rows for one in layouts for _, _, rows in read_pieces(stored[one.name]))
    write_safetensors(target, layouts, pieces)


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one", metadata={"format": "pt"})
    copied(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = load_file(tmp_path / "two")
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    (large,) = (one for one in stored_tensors(tmp_path / "two") if one.name == "large")
    sizes = [stop - start for start, stop, _ in read_pieces(large)]
    assert len(sizes) == 4
    assert max(sizes) * 2 * 4 == PIECE_BYTES


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one", metadata={"format": "pt"})
    target = tmp_path / "two"
    target.write_text("old")

    def broken() -> object:
        yield torch.zeros(4)
        raise ModelError("stopped")

    with pytest.raises(ModelError, match="stopped"):
        write_safetensors(target, [Layout("x", torch.float32, (8,))], broken())  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        stored_tensors(path)
    save_file({"x": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(ModelError, match="x is F8_E4M3, which cannot be merged into"):
        stored_tensors(path)
