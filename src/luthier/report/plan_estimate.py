"""`luthier plan`: predicted memory, time and cost of training, on a terminal and as JSON."""

from typing import Any

from luthier.estimate.architecture import Architecture
from luthier.estimate.fitting import Fit
from luthier.estimate.hardware import GIB, Hardware
from luthier.estimate.shape import TrainingShape
from luthier.estimate.time import TimePrediction
from luthier.report import spelling

_PARTS = {
    "weights": "weights",
    "quantization_constants": "quantisation constants",
    "stored": "file of the weights, mapped",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "activations": "activations",
    "attention": "attention",
    "head": "head",
    "working": "passing gradients, temporaries",
    "allocator": "allocator",
    "context": "libraries and CUDA context",
}
_SMALLEST_SHOWN_BYTES = 2**19


def estimate_lines(
    fit: Fit,
    architecture: Architecture,
    shape: TrainingShape,
    hardware: Hardware,
    time: TimePrediction | None = None,
) -> list[str]:
    """Lines for a terminal: what is trained where, each part of the peak, whether it fits and what
    would, time and cost."""
    lines = [
        f"memory on {hardware.name}: {_shape(architecture, shape)}",
        *(
            f"  {_PARTS[name]:32}{_gib(size):>10}"
            for name, size in fit.prediction.parts().items()
            if size >= _SMALLEST_SHOWN_BYTES
        ),
        f"  {'peak':32}{_gib(fit.prediction.total):>10}",
        f"  {verdict(fit, shape)}",
    ]
    if time is not None:
        lines.append(f"  {_time(time)}")
    lines += [f"  {note}" for note in architecture.notes]
    return lines


def verdict(fit: Fit, shape: TrainingShape) -> str:
    """Whether it fits, and the largest batch that does, or what would help."""
    available = fit.memory_bytes / GIB
    if fit.fits:
        said = f"fits ({100 * fit.share:.0f} % of {available:.1f} GiB)"
    else:
        needed = fit.prediction.total / GIB
        said = f"does not fit: {needed:.1f} of {available:.1f} GiB"
    if fit.largest_rows is not None:
        tokens = fit.largest_rows * shape.tokens_per_row
        rows = f"{spelling.count(fit.largest_rows)} row{'s' if fit.largest_rows > 1 else ''}"
        return (
            f"{said}; the largest batch that fits is {rows} of "
            f"{spelling.count(shape.tokens_per_row)} tokens (sft.batch_tokens: {tokens})"
        )
    if fit.remedies:
        return f"{said}; not even one row fits. One would with {', '.join(fit.remedies)}"
    return (
        f"{said}; no batch of this model fits, nor with qlora and short rows. Take larger hardware"
    )


def as_json(
    fit: Fit,
    shape: TrainingShape,
    hardware: Hardware,
    time: TimePrediction | None = None,
) -> dict[str, Any]:
    """The same for `--json`: sizes in bytes, time in seconds, cost in US dollars."""
    largest = fit.largest_rows
    return {
        "hardware": hardware.name,
        "memory_bytes": hardware.memory_bytes,
        "rows": shape.rows,
        "tokens_per_row": shape.tokens_per_row,
        "peak_bytes": fit.prediction.total,
        "parts_bytes": fit.prediction.parts(),
        "fits": fit.fits,
        "largest_rows": largest,
        "largest_batch_tokens": None if largest is None else largest * shape.tokens_per_row,
        "remedies": list(fit.remedies),
        "seconds": None if time is None else time.seconds,
        "tokens_per_second": None if time is None else time.tokens_per_second,
        "price_usd": None if time is None else time.price_usd,
    }


def _shape(architecture: Architecture, shape: TrainingShape) -> str:
    how = shape.method if shape.quantization is None else f"{shape.method} {shape.quantization}"
    checkpointing = ", gradient checkpointing" if shape.gradient_checkpointing else ""
    return (
        f"{architecture.model_type} of {spelling.count(architecture.parameters)} parameters, "
        f"{how} {shape.dtype}, {spelling.count(shape.rows)} x "
        f"{spelling.count(shape.tokens_per_row)} tokens{checkpointing}"
    )


def _time(time: TimePrediction) -> str:
    rate = spelling.rate(time.tokens_per_second)
    said = f"at least {spelling.duration(time.seconds)} of training, at most {rate} tokens/s"
    return said if time.price_usd is None else f"{said}, from {time.price_usd:.2f} USD"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
