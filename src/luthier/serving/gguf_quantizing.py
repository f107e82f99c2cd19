"""A 16-bit or 32-bit GGUF to Q6_K, Q5_K_M, Q4_K_M or Q4_0, some rows at a time.

The program of a child process: `python -m luthier.serving.gguf_quantizing SOURCE TARGET MIXTURE`.
The rows go through llama.cpp's own code, the types are those of its mixtures, and the file is the
one that its `llama-quantize` makes, byte for byte.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

from luthier.errors import ServingError
from luthier.serving.gguf_file import GGUFHeader, GGUFTensor, header_with, read_header
from luthier.serving.gguf_mixtures import FILE_TYPES, Mixture, in_llama_order, planned_types

if TYPE_CHECKING:
    import numpy as np

TENSOR_MARK = " --> "  # stands in the line that this program prints for each tensor
_SLAB_BYTES = 16 << 20  # float32 that one thread works on at a time
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION (ggml.h)
_F32, _F16, _BF16 = 0, 1, 30


def quantize_file(
    source: Path, target: Path, mixture: Mixture, importance: Path | None, threads: int
) -> None:
    """Write `target`; memory stays at a few slabs, whatever the size of the model.

    Raises:
        ServingError: `source` is quantised already, has values that are no numbers, or an
            architecture with other rules; `importance` is of another model.
    """
    from luthier.serving.importance import read_importance

    header = read_header(source)
    matrix = None if importance is None else read_importance(importance)
    kinds = planned_types(header, mixture, weighted=matrix is not None)
    tensors = _laid_out(header, kinds)
    changed: dict[str, int | str] = {
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": FILE_TYPES[mixture],
    }
    if matrix is not None:
        changed |= matrix.metadata
    columns = {} if matrix is None else matrix.columns
    with (
        source.open("rb") as stream,
        target.open("wb") as made,
        ThreadPoolExecutor(threads) as pool,
    ):
        made.write(header_with(source, changed, tensors))
        for tensor in tensors:
            origin = header.tensors[tensor.name]
            stream.seek(header.data_start_bytes + origin.offset_bytes)
            if origin.kind == tensor.kind:
                _copy(stream, made, tensor.size_bytes)
            else:
                weights = _column_weights(tensor, columns)
                slabs = _slabs(stream, origin)
                # As many slabs in memory as there are threads: the next are read when these are
                # written.
                for batch in _batches(slabs, threads):
                    jobs = [pool.submit(_quantized, origin, tensor, raw, weights) for raw in batch]
                    made.writelines(job.result().data for job in jobs)
            made.write(bytes(-tensor.size_bytes % header.alignment_bytes))
            print(f"{tensor.name}{TENSOR_MARK}{tensor.kind}", flush=True)  # noqa: T201


def _laid_out(header: GGUFHeader, kinds: Mapping[str, int]) -> list[GGUFTensor]:
    offset, tensors = 0, []
    for tensor in in_llama_order(header.tensors):
        made = replace(tensor, kind=kinds[tensor.name], offset_bytes=offset)
        tensors.append(made)
        offset += made.size_bytes + -made.size_bytes % header.alignment_bytes
        if made.kind != tensor.kind and tensor.kind not in (_F32, _F16, _BF16):
            raise ServingError(
                f"{tensor.name}: quantised already (type {tensor.kind}). Quantising twice loses "
                "more than once: start from the 16-bit model."
            )
    return tensors


def _column_weights(
    tensor: GGUFTensor, columns: Mapping[str, "np.ndarray"]
) -> "np.ndarray | None":
    weights = columns.get(tensor.name)
    if weights is not None and weights.shape != tensor.shape[:1]:
        raise ServingError(
            f"{tensor.name}: the importance matrix has {weights.size:,} columns, the tensor "
            f"{tensor.shape[0]:,}. Measure the importance on this model."
        )
    return weights


def _slabs(stream: BinaryIO, tensor: GGUFTensor) -> Iterator["np.ndarray"]:
    """(R, C) float32 or 16 bits as uint16: whole rows of the tensor, at most a slab of them."""
    import numpy as np

    columns = tensor.shape[0]
    item = np.dtype(np.float32 if tensor.kind == _F32 else np.uint16)
    row_bytes = columns * item.itemsize
    left = tensor.size_bytes // row_bytes
    at_once = max(1, _SLAB_BYTES // (4 * columns))
    while left:
        count = min(at_once, left)
        left -= count
        yield np.frombuffer(stream.read(count * row_bytes), item).reshape(count, columns)


def _as_float32(raw: "np.ndarray", tensor: GGUFTensor) -> "np.ndarray":
    import numpy as np

    if tensor.kind == _BF16:  # the upper half of a float32
        rows = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        rows = raw if tensor.kind == _F32 else raw.view(np.float16).astype(np.float32)
    if not np.isfinite(rows).all():
        raise ServingError(
            f"{tensor.name}: infinite or no numbers among its weights, which no quantised type "
            "can hold. The merged model is broken, or its 16-bit copy overflowed: see f16."
        )
    return rows


def _quantized(
    origin: GGUFTensor, tensor: GGUFTensor, raw: "np.ndarray", weights: "np.ndarray | None"
) -> "np.ndarray":
    from luthier.serving.llama_library import quantize_rows

    row_bytes = replace(tensor, shape=tensor.shape[:1]).size_bytes
    return quantize_rows(_as_float32(raw, origin), tensor.kind, row_bytes, weights)


def _batches(slabs: Iterator["np.ndarray"], size: int) -> Iterator[list["np.ndarray"]]:
    from itertools import islice

    while batch := list(islice(slabs, size)):
        yield batch


def _copy(stream: BinaryIO, made: BinaryIO, size_bytes: int) -> None:
    while size_bytes:
        piece = stream.read(min(size_bytes, _SLAB_BYTES))
        made.write(piece)
        size_bytes -= len(piece)


def main() -> None:
    """Read the arguments, quantise; a user's error is one line on standard output."""
    parser = argparse.ArgumentParser(description="Quantise a GGUF as llama-quantize does.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("mixture", choices=get_args(Mixture))
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    try:
        quantize_file(given.source, given.target, given.mixture, given.importance, given.threads)
    except ServingError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
