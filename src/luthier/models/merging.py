"""Merging what was trained into a base's weights: read, changed and written a few rows at a time.

Each tensor is read in pieces of half a MiB or so, changed in float32 (`adapter_updates.py` has the
formulas), cast once to what is written, and appended to its file. In memory are a piece, the
adapter's matrices and the libraries, whatever the size of the model.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_updates import Replaced, Update, adapter_updates
from luthier.models.dequantising import dequantised_weights
from luthier.models.loading import DType, is_whole_model
from luthier.models.merged_rows import MergedTensor, Tally, merged_rows
from luthier.models.safetensors_stream import (
    Stored,
    in_file_order,
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

    Attributes:
        changed_tensors: how many of the base's have other values.
        relative_delta_error: of the change that the written weights have against the float32 base,
            relative to the float32 change, over all tensors (Frobenius norms); 0 where nothing
            changed. Casting to 16 bits rounds small changes away.
        dtype: of most of the written numbers.
    """

    changed_tensors: int
    relative_delta_error: float
    dtype: str


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
    tally = Tally()
    for name, tensors in files.items():
        layouts = in_file_order(one.layout for one in tensors)
        by_name = {one.name: one for one in tensors}
        ordered = [by_name[layout.name] for layout in layouts]
        write_safetensors(folder / name, layouts, merged_rows(ordered, tally))
    copy_small_files(whole, folder)
    _write_config(folder, dtype, untied=untied)
    _write_index(folder, files)
    return MergeReport(
        changed_tensors=len(tally.changed),
        relative_delta_error=tally.relative_error,
        dtype=_most(files),
    )


def _most(files: Mapping[str, list[MergedTensor]]) -> str:
    elements: dict[torch.dtype, int] = {}
    for tensor in (one for tensors in files.values() for one in tensors):
        count = math.prod(tensor.source.shape)
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + count
    return str(max(elements, key=lambda dtype: elements[dtype])).removeprefix("torch.")


def _with_adapter(
    base: Path, adapter: Path, dtype: DType | None, replaced: "Mapping[str, Tensor]"
) -> tuple[dict[str, list[MergedTensor]], bool]:
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
    files: dict[str, list[MergedTensor]] = {path.name: [] for path in weight_files(base)}
    sources = stored.tensors | {name: stored.tensors[table] for name, table in untied.items()}
    for name, source in sources.items():
        update_here = by_file_name.get(name)
        files[source.path.name].append(
            MergedTensor(
                name, source, _written(source, dtype), update_here, instead.get(source.name)
            )
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


def _whole(base: Path, model: Path, dtype: DType | None) -> dict[str, list[MergedTensor]]:
    before = {one.name: one for path in weight_files(base) for one in stored_tensors(path)}
    return {
        path.name: [
            MergedTensor(one.name, one, _written(one, dtype), before=before.get(one.name))
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


def _write_index(folder: Path, files: Mapping[str, Iterable[MergedTensor]]) -> None:
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
