"""Merging what was trained into a base's weights: read, changed and written a few rows at a time.

Each tensor is read in pieces of a few MiB, changed in float32 (`adapter_updates.py` has the
formulas), cast once to what is written, and appended to its file. In memory are a piece, the
adapter's matrices and the libraries, whatever the size of the model.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_updates import Added, LowRank, Replaced, Update, adapter_updates
from luthier.models.dequantising import dequantised_weights
from luthier.models.loading import DType, is_whole_model
from luthier.models.safetensors_stream import (
    Layout,
    Stored,
    in_file_order,
    read_pieces,
    row_ranges,
    stored_tensors,
    write_safetensors,
)
from luthier.models.skeleton import StoredModel, refuse_quantised
from luthier.models.tied_weights import without_ties
from luthier.models.weights import INDEX_NAME, copy_small_files, weight_files
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["MergeReport", "dequantised_weights", "merge"]


@dataclass(frozen=True)
class MergeReport:
    """What merging did.

    The errors are those of the change that the written weights have against the float32 base,
    relative to the float32 change, over all tensors (Frobenius norms); 0 where nothing changed.

    Attributes:
        changed_tensors: how many of the base's have other values.
        relative_delta_error: of what is written. Casting to 16 bits rounds small changes away.
        relative_delta_error_float32: the same before the cast: rounding of float32 sums alone.
        dtype: of most of the written numbers.
    """

    changed_tensors: int
    relative_delta_error: float
    relative_delta_error_float32: float
    dtype: str


@dataclass(frozen=True)
class _Merged:
    """One tensor to be written, out of one of the base and what changes it."""

    name: str
    source: Stored
    update: Update | None
    dtype: "torch.dtype"
    # Float32 values of the base instead of the stored ones, looked up when it is its turn.
    replaced: "tuple[Mapping[str, Tensor], str] | None" = None
    # The same tensor before full fine-tuning, of the base.
    before: Stored | None = None

    @property
    def layout(self) -> Layout:
        return Layout(self.name, self.dtype, self.source.shape)


@dataclass
class _Tally:
    """Sums of squares over all that was written so far, and how much of each dtype."""

    delta: float = 0.0
    error: float = 0.0
    error_float32: float = 0.0
    changed: int = 0
    elements: "dict[torch.dtype, int]" = field(default_factory=dict)

    def report(self) -> MergeReport:
        most = max(self.elements, key=lambda dtype: self.elements[dtype])
        of_delta = 1 / self.delta if self.delta else 0.0
        return MergeReport(
            changed_tensors=self.changed,
            relative_delta_error=math.sqrt(self.error * of_delta),
            relative_delta_error_float32=math.sqrt(self.error_float32 * of_delta),
            dtype=str(most).removeprefix("torch."),
        )


def merge(
    base: Path,
    adapter: Path,
    folder: Path,
    *,
    dtype: DType | None = None,
    replaced: "Mapping[str, Tensor] | None" = None,
) -> MergeReport:
    """Write base + adapter to `folder`, with the base's config, tokenizer and shards.

    The same inputs give the same bytes. Input and output embeddings that the base ties and the
    adapter changes differently are written as two, and config.json says that they are.

    Args:
        base: model folder with 16-bit or 32-bit safetensors.
        adapter: PEFT folder; or a whole model of the same shape, which is written itself.
        folder: where to write; each file is replaced whole or not at all.
        dtype: of all floating-point tensors, and config.json says so; None: as they are stored.
        replaced: base tensors to take instead of the stored ones (`dequantised_weights`).

    Raises:
        ModelError: the base is quantised; the adapter changes a tensor that the base does not
            have, or in another shape or way; a weight is too large for float16.
    """
    refuse_quantised(base)
    if is_whole_model(adapter):
        files, untied, whole = _whole(base, adapter, dtype), False, adapter
    else:
        files, untied = _with_adapter(base, adapter, dtype, replaced or {})
        whole = base
    tally = _Tally()
    for name, tensors in files.items():
        layouts = in_file_order(one.layout for one in tensors)
        by_name = {one.name: one for one in tensors}
        pieces = (piece for layout in layouts for piece in _pieces(by_name[layout.name], tally))
        write_safetensors(folder / name, layouts, pieces)
    copy_small_files(whole, folder)
    _write_config(folder, dtype, untied=untied)
    _write_index(folder, files)
    return tally.report()


def _with_adapter(
    base: Path, adapter: Path, dtype: DType | None, replaced: "Mapping[str, Tensor]"
) -> tuple[dict[str, list[_Merged]], bool]:
    stored = StoredModel(base)
    found = adapter_updates(adapter, stored.conv1d_names())
    updates, untied = without_ties(found, stored)
    by_file_name: dict[str, Update] = {}
    for name, update in updates.items():
        file_name = stored.file_name(name)
        if file_name is not None:
            _check_shape(adapter, name, update, stored.tensors[file_name])
        elif name not in untied:
            raise ModelError(f"{adapter}: it changes {name}, which the base does not have.")
        by_file_name[file_name or name] = update
    instead = {stored.file_name(name): (replaced, name) for name in replaced}
    files: dict[str, list[_Merged]] = {path.name: [] for path in weight_files(base)}
    sources = stored.tensors | {name: stored.tensors[table] for name, table in untied.items()}
    for name, source in sources.items():
        update_here = by_file_name.get(name)
        files[source.path.name].append(
            _Merged(name, source, update_here, _written(source, dtype), instead.get(source.name))
        )
    return files, bool(untied)


def _check_shape(adapter: Path, name: str, update: Update, stored: Stored) -> None:
    is_part = isinstance(update, Replaced) and update.rows is not None
    wanted = stored.shape[1:] if is_part else stored.shape
    if update.shape != wanted:
        raise ModelError(
            f"{adapter}: it changes {name} in the shape {list(update.shape)}, and the base has "
            f"{list(stored.shape)}. Merge into the base that it was trained on."
        )


def _whole(base: Path, model: Path, dtype: DType | None) -> dict[str, list[_Merged]]:
    before = {one.name: one for path in weight_files(base) for one in stored_tensors(path)}
    return {
        path.name: [
            _Merged(one.name, one, None, _written(one, dtype), before=before.get(one.name))
            for one in stored_tensors(path)
        ]
        for path in weight_files(model)
    }


def _written(stored: Stored, dtype: DType | None) -> "torch.dtype":
    import torch

    if dtype is None or not stored.dtype.is_floating_point:
        return stored.dtype
    wanted: torch.dtype = getattr(torch, dtype)
    return wanted


def _pieces(merged: _Merged, tally: _Tally) -> "Iterator[Tensor]":
    """The rows to be written, and what they add to the tally."""
    tally.elements[merged.dtype] = tally.elements.get(merged.dtype, 0) + math.prod(
        merged.source.shape
    )
    if merged.before is not None and merged.before.shape == merged.source.shape:
        yield from _trained_whole(merged, merged.before, tally)
    elif merged.update is not None:
        tally.changed += 1
        yield from _updated(merged, merged.update, tally)
    else:
        tally.changed += merged.before is not None
        for _, _, rows in _base_pieces(merged):
            yield _cast(rows, merged)


def _updated(merged: _Merged, update: Update, tally: _Tally) -> "Iterator[Tensor]":
    norms = None
    if isinstance(update, LowRank) and update.needs_norms:
        norms = update.norms((i, j, rows.float()) for i, j, rows in _base_pieces(merged))
    for start, _, stored in _base_pieces(merged):
        rows = stored.float()
        match update:
            case LowRank():
                delta = update.delta(start, rows, norms)
                after = rows + delta
            case Added():
                delta = update.values
                after = rows + delta
            case Replaced():
                after = update.after(start, rows)
                delta = after - rows
        yield _counted(merged, rows, after, delta, tally)


def _trained_whole(merged: _Merged, before: Stored, tally: _Tally) -> "Iterator[Tensor]":
    changed = False
    for (_, _, old), (_, _, new) in zip(
        read_pieces(before), read_pieces(merged.source), strict=True
    ):
        if not new.is_floating_point():
            changed = changed or not bool((old == new).all())
            yield new
            continue
        rows, after = old.float(), new.float()
        delta = after - rows
        changed = changed or bool(delta.any())
        yield _counted(merged, rows, after, delta, tally)
    tally.changed += changed


def _counted(
    merged: _Merged, rows: "Tensor", after: "Tensor", delta: "Tensor", tally: _Tally
) -> "Tensor":
    written = _cast(after, merged)
    tally.delta += _square(delta)
    tally.error_float32 += _square((after - rows).sub_(delta))
    tally.error += _square((written.float() - rows).sub_(delta))
    return written


def _square(values: "Tensor") -> float:
    flat = values.reshape(-1)
    return float(flat.dot(flat))


def _cast(rows: "Tensor", merged: _Merged) -> "Tensor":
    import torch

    written = rows.to(merged.dtype)
    is_narrower = merged.dtype == torch.float16 and rows.dtype != torch.float16
    if is_narrower and bool(written.isinf().any()):
        raise ModelError(
            f"{merged.name} has weights above 65504, the largest number of float16. "
            "Set merge.dtype: bfloat16 or float32."
        )
    return written


def _base_pieces(merged: _Merged) -> "Iterable[tuple[int, int, Tensor]]":
    if merged.replaced is None:
        return read_pieces(merged.source)
    found, name = merged.replaced
    weight = found[name]
    return ((i, j, weight[i:j]) for i, j in row_ranges(merged.source))


def _write_config(folder: Path, dtype: DType | None, *, untied: bool) -> None:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    changed = dict(config)
    if dtype is not None:
        changed["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if untied:
        changed["tie_word_embeddings"] = False
    if changed != config:
        write_atomically(path, json.dumps(changed, indent=2) + "\n")


def _write_index(folder: Path, files: Mapping[str, Iterable[_Merged]]) -> None:
    path = folder / INDEX_NAME
    if not path.exists():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    weight_map = {one.name: name for name, tensors in files.items() for one in tensors}
    size = sum(one.layout.size_bytes for tensors in files.values() for one in tensors)
    is_right = index["weight_map"] == weight_map
    metadata = index.setdefault("metadata", {})
    if is_right and metadata.get("total_size") == size:
        return
    index["weight_map"] = dict(sorted(weight_map.items()))
    metadata["total_size"] = size
    if "total_parameters" in metadata and not is_right:
        metadata["total_parameters"] = sum(
            math.prod(one.source.shape) for tensors in files.values() for one in tensors
        )
    write_atomically(path, json.dumps(index, indent=2) + "\n")
