"""Less memory for the same effective batch: large batches in parts, smaller parts when memory
runs out, or one clear message."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.training.prediction import Prediction

Row = dict[str, Any]
# torch 2.13 `c10/core/impl/alloc_cpu.cpp`: what a CPU allocation that fails says.
_CPU_MESSAGE = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that the device's or the machine's memory is used up."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _CPU_MESSAGE in str(error)
    )


@contextmanager
def told_when_out_of_memory(
    when: Callable[[], str], prediction: "Prediction | None", remedy: str
) -> Iterator[None]:
    """Raises ModelError, one message with what was predicted, where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        predicted = f"; predicted was {prediction.peak}" if prediction else ""
        raise ModelError(
            f"Out of memory {when()}{predicted}. {remedy}, or see with luthier plan what fits."
        ) from error


@dataclass
class ShrinkingStep:
    """Runs the batches of an optimizer step in as many parts as fit.

    A part has at most `most_tokens` padded tokens, or one row. `forget` drops the gradients of the
    step so far. When memory runs out `say` is told, without it that is an error, and all batches
    of the step are run again in twice as many parts: a gradient that was added in part cannot be
    told from one that was not. Losses are normalised over the step's supervised tokens, so the
    parts change rounding only.
    """

    forget: Callable[[], None]
    say: Callable[[str], None] | None
    most_tokens: int | None = None
    parts: int = 1
    shrunk: list[int] = field(default_factory=list)
    _batches: list[Sequence[Row]] = field(default_factory=list)

    def __call__(
        self, rows: Sequence[Row], run: "Callable[[Sequence[Row]], Tensor]", *, ends_step: bool
    ) -> "Tensor":
        """The loss of the batch `rows`, its gradient added.

        `run` does forward and backward of some rows and gives their share of the step's loss.

        Raises:
            ModelError: a single row does not fit.
        """
        self._batches.append(rows)
        again: Sequence[Sequence[Row]] = [rows]
        while True:
            try:
                losses = [self._batch(batch, run) for batch in again]
            except (RuntimeError, MemoryError) as error:
                if self.say is None or not is_out_of_memory(error):
                    raise
                self._shrink()
                again = self._batches
                continue
            if ends_step:
                self._batches = []
            return losses[-1]

    def _batch(self, rows: Sequence[Row], run: "Callable[[Sequence[Row]], Tensor]") -> "Tensor":
        first, *others = self._cut(rows)
        total = run(first)
        for part in others:
            total = total + run(part)
        return total

    def _cut(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        """The batch itself where it may stay whole; else rows of like length together."""
        most_rows = -(-len(rows) // self.parts)
        if most_rows == len(rows) and self._fits(rows):
            return [rows]
        parts: list[list[Row]] = [[]]
        for row in sorted(rows, key=_length):
            if parts[-1] and not (len(parts[-1]) < most_rows and self._fits([*parts[-1], row])):
                parts.append([])
            parts[-1].append(row)
        return list(parts)

    def _fits(self, rows: Sequence[Row]) -> bool:
        most = self.most_tokens
        return most is None or len(rows) * max(map(_length, rows)) <= most

    def _shrink(self) -> None:
        import torch

        if self.parts >= max(len(batch) for batch in self._batches):
            raise ModelError(
                "Out of memory with a single row in a batch. Shorten the rows "
                "(max_length_tokens of prepare or preferences), set gradient_checkpointing: true, "
                "or use method: qlora."
            )
        self.parts *= 2
        self.shrunk.append(self.parts)
        self.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        assert self.say is not None, "else the error was raised"
        self.say(
            f"  Out of memory: batches go through in {self.parts} parts from now on, with the "
            "same effective batch."
        )


def _length(row: Row) -> int:
    return len(row["input_ids"])
