"""The importance matrix of llama.cpp: how large the inputs of each linear layer are, by column.

Quantisers weigh the error in a column with the mean square of what is multiplied with it
(llama.cpp, tools/imatrix, the idea of https://github.com/ggml-org/llama.cpp/pull/4861). It is
measured here on the merged model in torch, on rows of the dataset, and written in llama.cpp's own
GGUF format, which its `llama-quantize --imatrix` reads too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import load_split, split_files
from luthier.errors import ServingError
from luthier.evaluation.rows import evenly
from luthier.store.artifact import Workspace
from luthier.store.files import fsync_file, fsync_folder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from luthier.data.rows import Split

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASET_ROWS = 256
_LAYERS = "blk."  # as llama-imatrix does by default: the head and the token table stay out
# transformers' model types whose architecture has another name in GGUF
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "mixtral": "llama"}


@dataclass(frozen=True)
class Importance:
    """`columns`: (C,) float32 by the tensor's GGUF name; `metadata`: what the GGUF says of it."""

    columns: Mapping[str, "np.ndarray"]
    metadata: Mapping[str, int | str]


def importance_matrix(
    model_folder: Path,
    rows: Sequence[Sequence[int]],
    target: Path,
    workspace: Workspace,
    *,
    source: str = "validation",
) -> Path:
    """Measure the importance matrix of a model on `rows` and write it to `target`; a kept file
    is kept.

    Experts of mixture-of-experts layers are left out: they are quantised without weights.

    Args:
        model_folder: config and safetensors of the merged model.
        rows: token ids of whole texts, each at most as long as the model's context.
        source: what the rows are, for the file's metadata.

    Raises:
        ServingError: no rows, or GGUF has no names for this architecture's layers.
        InterruptedRunError: stopped on request.
    """
    if target.exists():
        return target
    if not rows:
        raise ServingError("No rows to measure the importance matrix on. Add a validation split.")
    import torch

    from luthier.models.loading import load_model
    from luthier.models.parity import check_device

    model = load_model(model_folder, device=check_device(model_folder))
    layers = _named_layers(model, model_folder)
    sums = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(_adder(sums[name])) for name, layer in layers.items()]
    try:
        with (
            torch.inference_mode(),
            workspace.reporter.task("Measuring importance", len(rows), "rows") as task,
        ):
            for row in rows:
                workspace.raise_if_stopped()
                ids_BT = torch.tensor([row], device=model.device)
                # One position's logits: the head's are not needed
                model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
                task.advance()
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(map(len, rows))
    _write(target, sums, tokens, rows, source)
    return target


def dataset_importance(model_folder: Path, dataset: Path, workspace: Workspace) -> Path:
    """The importance matrix on a dataset's validation rows (training rows where there are none),
    in the scratch folder; raises as `importance_matrix`."""
    split: Split = "validation" if split_files(dataset, "validation") else "train"
    rows = load_split(dataset, split, ["input_ids"])
    chosen = rows.select(evenly(len(rows), _DATASET_ROWS))["input_ids"]
    target = workspace.scratch / "importance.gguf"
    return importance_matrix(model_folder, chosen, target, workspace, source=split)


def read_importance(path: Path) -> Importance:
    """Read what `importance_matrix` or llama-imatrix wrote.

    Raises:
        ServingError: the file is no importance matrix in GGUF, or holds no positive numbers.
    """
    import numpy as np

    from luthier.serving.gguf_file import read_header

    header = read_header(path)
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    with path.open("rb") as stream:
        for name, tensor in header.tensors.items():
            stream.seek(header.data_start_bytes + tensor.offset_bytes)
            values = np.frombuffer(stream.read(tensor.size_bytes), np.float32)
            for suffix, found in ((_SUMS, sums), (_COUNTS, counts)):
                if name.endswith(suffix):
                    found[name.removesuffix(suffix)] = values
    columns = {name: sums[name] / counts[name] for name in sums if _is_single(counts, name)}
    if header.metadata.get("general.type") != "imatrix" or not columns:
        raise ServingError(f"{path}: not an importance matrix as llama.cpp's GGUF has it.")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ServingError(f"{path}: {name}: infinite or no numbers. Measure it again.")
    return Importance(
        columns,
        # The keys of llama-quantize
        {
            "quantize.imatrix.file": path.name,
            "quantize.imatrix.entries_count": len(columns),
            "quantize.imatrix.chunks_count": int(header.metadata["imatrix.chunk_count"]),
        },
    )


def _is_single(counts: Mapping[str, "np.ndarray"], name: str) -> bool:
    """Not of several experts, and seen at all."""
    return name in counts and counts[name].size == 1 and counts[name][0] > 0


def _adder(sums_C: "torch.Tensor") -> Any:
    def add(_layer: "torch.nn.Module", inputs: tuple["torch.Tensor", ...]) -> None:
        x_NC = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        sums_C.add_(x_NC.square().sum(0).cpu())

    return add


def _named_layers(model: Any, folder: Path) -> Mapping[str, "torch.nn.Linear"]:
    """The linear layers by the names of their GGUF tensors."""
    import torch
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    model_type = str(model.config.model_type)
    wanted = _ARCHITECTURES.get(model_type, model_type)
    found = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == wanted), None)
    layers: dict[str, torch.nn.Linear] = {}
    if found is not None:
        names = get_tensor_name_map(found, model.config.num_hidden_layers)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                gguf_name = names.get_name(f"{name}.weight", try_suffixes=(".weight",)) or ""
                if gguf_name.startswith(_LAYERS):
                    layers[gguf_name] = module
    if not layers:
        raise ServingError(
            f"{folder}: GGUF has no names for the layers of {model_type!r}, so no importance "
            "matrix can be measured. Export without it."
        )
    return layers


def _write(
    target: Path,
    sums: Mapping[str, "torch.Tensor"],
    tokens: int,
    rows: Sequence[Sequence[int]],
    source: str,
) -> None:
    """The layout of llama.cpp's tools/imatrix/imatrix.cpp, `IMatrixCollector::save_imatrix`."""
    import gguf
    import numpy as np

    partial = target.with_name(f"{target.name}.part")
    writer = gguf.GGUFWriter(partial, arch="")
    writer.kv_data[0].clear()  # an importance matrix has no architecture
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [source])
    writer.add_uint32("imatrix.chunk_count", len(rows))
    writer.add_uint32("imatrix.chunk_size", max(map(len, rows)))
    for name in sorted(sums):
        writer.add_tensor(f"{name}{_SUMS}", sums[name].numpy()[np.newaxis])
        writer.add_tensor(f"{name}{_COUNTS}", np.full((1, 1), tokens, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)
