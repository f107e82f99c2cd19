"""The rows of a merged model: each piece changed in float32, cast once, and what that cost.

Pieces are worked on by several threads, each alone on its piece: threads that share one small
operation wait for each other, which on a busy machine takes most of the time (merging 0.5 GB took
47 s so, and 1.4 s by one thread; 2 cores, load 8, 2026-12).
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from luthier.errors import ModelError
from luthier.models.adapter_updates import Added, LowRank, Replaced, Update
from luthier.models.safetensors_stream import Layout, Stored, read_pieces, row_ranges

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MergedTensor:
    """One tensor to be written, out of one of the base and what changes it."""

    name: str
    source: Stored
    dtype: "torch.dtype"
    update: Update | None = None
    # Float32 values of the base instead of the stored ones, looked up when it is its turn.
    replaced: "tuple[Mapping[str, Tensor], str] | None" = None
    # The same tensor before full fine-tuning, of the base.
    before: Stored | None = None

    @property
    def layout(self) -> Layout:
        """As it is written."""
        return Layout(self.name, self.dtype, self.source.shape)


@dataclass
class Tally:
    """Sums of squares over all that was written so far, and how many tensors changed."""

    delta: float = 0.0
    error: float = 0.0
    changed: set[str] = field(default_factory=set)

    @property
    def relative_error(self) -> float:
        """Norm of the errors relative to that of the change; 0 where nothing changed."""
        return math.sqrt(self.error / self.delta) if self.delta else 0.0


@dataclass(frozen=True)
class _Piece:
    """Rows to be written, and their sums of squares."""

    written: "Tensor"
    name: str
    changed: bool = False
    delta: float = 0.0
    error: float = 0.0


def merged_rows(tensors: Iterable[MergedTensor], tally: Tally) -> "Iterator[Tensor]":
    """The rows of these tensors in order, as they are written; `tally` grows with them."""
    for piece in _in_order(call for tensor in tensors for call in _calls(tensor)):
        tally.delta += piece.delta
        tally.error += piece.error
        if piece.changed:
            tally.changed.add(piece.name)
        yield piece.written


def _in_order(calls: "Iterable[Callable[[], _Piece]]") -> "Iterator[_Piece]":
    """Results in the order of the calls; a few are worked on, or wait, at a time."""
    import torch

    threads = torch.get_num_threads()
    waiting: deque[Future[_Piece]] = deque()
    torch.set_num_threads(1)  # of an operation, here and in the threads that are started from now
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _calls(tensor: MergedTensor) -> "Iterator[Callable[[], _Piece]]":
    """One for each piece; what they read is read when they run."""
    update = tensor.update
    if tensor.before is not None and tensor.before.shape == tensor.source.shape:
        both = zip(read_pieces(tensor.before), read_pieces(tensor.source), strict=True)
        for (_, _, old), (_, _, new) in both:
            yield partial(_trained_whole, tensor, old, new)
    elif update is not None:
        norms = None
        if isinstance(update, LowRank) and update.needs_norms:
            norms = update.norms((i, j, rows.float()) for i, j, rows in _base_pieces(tensor))
        for start, _, rows in _base_pieces(tensor):
            yield partial(_updated, tensor, update, start, rows, norms)
    else:
        for _, _, rows in _base_pieces(tensor):
            yield partial(_unchanged, tensor, rows)


def _base_pieces(tensor: MergedTensor) -> "Iterable[tuple[int, int, Tensor]]":
    if tensor.replaced is None:
        return read_pieces(tensor.source)
    found, name = tensor.replaced
    weight = found[name]
    return ((i, j, weight[i:j]) for i, j in row_ranges(tensor.source))


def _unchanged(tensor: MergedTensor, rows: "Tensor") -> _Piece:
    return _Piece(_cast(rows, tensor), tensor.name)


def _updated(
    tensor: MergedTensor, update: Update, start: int, stored: "Tensor", norms: "Tensor | None"
) -> _Piece:
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
    return _counted(tensor, rows, after, delta, changed=True)


def _trained_whole(tensor: MergedTensor, old: "Tensor", new: "Tensor") -> _Piece:
    if not new.is_floating_point():
        return _Piece(new, tensor.name, changed=not bool((old == new).all()))
    rows, after = old.float(), new.float()
    delta = after - rows
    return _counted(tensor, rows, after, delta, changed=bool(delta.any()))


def _counted(
    tensor: MergedTensor, rows: "Tensor", after: "Tensor", delta: "Tensor", *, changed: bool
) -> _Piece:
    written = _cast(after, tensor)
    if written.dtype == after.dtype:
        error = _square(rows.sub(after).add_(delta))
    else:
        # The rounding of float32 sums is nothing beside that of 16 bits.
        error = _square(written.float().sub_(after))
    return _Piece(written, tensor.name, changed, _square(delta), error)


def _square(values: "Tensor") -> float:
    flat = values.reshape(-1)
    return float(flat.dot(flat))


def _cast(rows: "Tensor", tensor: MergedTensor) -> "Tensor":
    import torch

    written = rows.to(tensor.dtype)
    is_narrower = tensor.dtype == torch.float16 and rows.dtype != torch.float16
    if is_narrower and bool(written.isinf().any()):
        raise ModelError(
            f"{tensor.name} has weights above 65504, the largest number of float16. "
            "Set merge.dtype: bfloat16 or float32."
        )
    return written
