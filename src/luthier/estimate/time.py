"""How long training takes and what it costs, from floating point operations and the hardware."""

from dataclasses import dataclass

from luthier.estimate.architecture import Architecture
from luthier.estimate.hardware import Hardware
from luthier.estimate.shape import ADAPTER_BYTES, BYTES, STATE_BYTES, TrainingShape, trained

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class TimePrediction:
    """Of a whole run on one device."""

    seconds: float
    flops: float
    """Of all steps."""
    tokens_per_second: float
    """Tokens of the rows, padding and shared prefixes included as they stand in the batch."""
    price_usd: float | None
    """None where the hardware has no price."""


def predict_seconds(
    architecture: Architecture,
    shape: TrainingShape,
    hardware: Hardware,
    *,
    micro_batches: int,
) -> TimePrediction:
    """Time of `micro_batches` micro-batches of `shape` and their optimizer steps.

    Matrix products run at the hardware's achievable rate; every micro-batch reads the weights
    two or three times, and every optimizer step its states, at the memory's bandwidth. The larger
    of computing and reading counts, micro-batch by micro-batch.

    Raises:
        ConfigError: no module of the model has a name in `target_modules`.
    """
    flops = micro_batch_flops(architecture, shape)
    dtype = shape.compute_dtype if shape.quantization else shape.dtype
    passes = 3 if shape.gradient_checkpointing else 2
    weights = architecture.linear_parameters * BYTES[dtype] * passes
    bandwidth = hardware.bandwidth_bytes_per_second
    batch_seconds = max(flops / hardware.rate(dtype), weights / bandwidth)
    # Weights, gradients and states are read, weights and states written.
    per_element = 3 * ADAPTER_BYTES + 2 * STATE_BYTES.get(shape.optimizer, 0)
    step_seconds = trained(architecture, shape).parameters * per_element / bandwidth
    steps = micro_batches / shape.gradient_accumulation_steps
    seconds = micro_batches * batch_seconds + steps * step_seconds
    price = hardware.price_usd_per_hour
    return TimePrediction(
        seconds=seconds,
        flops=flops * micro_batches,
        tokens_per_second=micro_batches * shape.rows * shape.tokens_per_row / seconds,
        price_usd=None if price is None else price * seconds / SECONDS_PER_HOUR,
    )


def micro_batch_flops(architecture: Architecture, shape: TrainingShape) -> float:
    """Floating point operations of one forward and backward (Kaplan et al., arXiv 2001.08361,
    section 2.1: 2 a parameter and token forward, 2 for the input's gradient, 2 for the weight's).

    A frozen weight needs no gradient of its own: 4. Checkpointing repeats the forward: 2 more.
    Attention: two products of T x T, half of them masked. The head sees supervised positions only.
    """
    again = 2 if shape.gradient_checkpointing else 0
    frozen, own = 4 + again, 6 + again
    is_full = shape.adapter is None
    adapter = 0 if is_full else trained(architecture, shape).parameters
    per_token = architecture.linear_parameters * (own if is_full else frozen) + adapter * own
    T, P = shape.tokens_per_row, shape.shared_prefix_tokens
    pairs = shape.rows * (T**2 - P**2) / 2 + P**2 / 2
    attention = 2 * architecture.layers * architecture.query_size * pairs * own
    positions = shape.rows * (shape.head_positions_per_row or shape.supervised_tokens_per_row)
    head = architecture.embedding_parameters * positions * (6 if is_full else 4)
    return float(per_token * shape.model_tokens + attention + head)
