"""The largest batch that fits, and what would fit where none does."""

from dataclasses import dataclass, replace

from luthier.estimate.architecture import Architecture
from luthier.estimate.hardware import Hardware
from luthier.estimate.memory import MemoryPrediction, predict_memory
from luthier.estimate.shape import TrainingShape

MOST_ROWS = 4096
SHORTEST_TOKENS = 64


@dataclass(frozen=True)
class Fit:
    """Whether training fits, and the next thing to know."""

    prediction: MemoryPrediction
    memory_bytes: int
    largest_rows: int | None
    """Rows of the largest micro-batch that fits; None when not even one row does."""
    remedies: tuple[str, ...]
    """Settings that would make one row fit; empty when one does, or when none helps."""

    @property
    def fits(self) -> bool:
        """Whether the batch asked for fits."""
        return self.prediction.total <= self.memory_bytes

    @property
    def share(self) -> float:
        """Of the memory that the prediction takes."""
        return self.prediction.total / self.memory_bytes


def find_fit(architecture: Architecture, shape: TrainingShape, hardware: Hardware) -> Fit:
    """The prediction for `shape`, the largest micro-batch, and remedies where there is none.

    Raises:
        ConfigError: no module of the model has a name in `target_modules`.
    """
    largest = largest_batch(architecture, shape, hardware)
    return Fit(
        prediction=predict_memory(architecture, shape, hardware),
        memory_bytes=hardware.memory_bytes,
        largest_rows=largest,
        remedies=() if largest else _remedies(architecture, shape, hardware),
    )


def largest_batch(
    architecture: Architecture, shape: TrainingShape, hardware: Hardware
) -> int | None:
    """The most rows of `shape`'s length that fit together, at most 4,096; None when not one does.

    Multiply by `shape.tokens_per_row` for `batch_tokens`.
    """
    if not _fits(architecture, shape.with_rows(1), hardware):
        return None
    fits, too_many = 1, 2
    while too_many <= MOST_ROWS and _fits(architecture, shape.with_rows(too_many), hardware):
        fits, too_many = too_many, too_many * 2
    too_many = min(too_many, MOST_ROWS + 1)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(architecture, shape.with_rows(middle), hardware):
            fits = middle
        else:
            too_many = middle
    return fits


def _fits(architecture: Architecture, shape: TrainingShape, hardware: Hardware) -> bool:
    return predict_memory(architecture, shape, hardware).total <= hardware.memory_bytes


def _remedies(
    architecture: Architecture, shape: TrainingShape, hardware: Hardware
) -> tuple[str, ...]:
    """Each setting added to those before it, until one row fits."""
    said: list[str] = []
    for text, changed in _steps(shape.with_rows(1)):
        said.append(text)
        if _fits(architecture, changed, hardware):
            return tuple(said)
        shorter = _longest(architecture, changed, hardware)
        if shorter:
            return (*said, f"prepare.max_length_tokens: {shorter}")
    return ()


def _steps(shape: TrainingShape) -> list[tuple[str, TrainingShape]]:
    steps = []
    if not shape.gradient_checkpointing:
        shape = replace(shape, gradient_checkpointing=True, shared_prefix_tokens=0)
        steps.append(("sft.gradient_checkpointing: true", shape))
    if shape.method != "qlora":
        shape = replace(
            shape,
            method="qlora",
            quantization="nf4",
            compute_dtype=shape.dtype,
            adapter=shape.adapter or TrainingShape().adapter,
        )
        steps.append(("sft.method: qlora", shape))
    return steps


def _longest(architecture: Architecture, shape: TrainingShape, hardware: Hardware) -> int | None:
    """The longest row, halving from `shape`'s, that fits; None when none from 64 tokens does."""
    tokens = shape.tokens_per_row // 2
    while tokens >= SHORTEST_TOKENS:
        if _fits(architecture, shape.with_length(tokens), hardware):
            return tokens
        tokens //= 2
    return None
