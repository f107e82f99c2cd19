"""How many requests a GPU answers in a second, foretold by a roofline: an upper bound.

A decoding step reads all weights and the keys and values of every request in the batch once, or
computes 2 operations a parameter and request, whichever takes longer; a prompt costs 2 operations
a parameter and token (Kaplan et al., arXiv 2001.08361, section 2.1; the roofline: Pope et al.,
"Efficiently scaling transformer inference", arXiv 2211.05102). Weights, keys and values have 16
bits. Attention's own operations, sampling, scheduling and the network take no time here.
"""

from dataclasses import dataclass

from luthier.errors import ConfigError
from luthier.estimate.architecture import Architecture
from luthier.estimate.hardware import GIB, Hardware
from luthier.estimate.shape import BYTES, DType

# vLLM's `--max-num-seqs` by its engine arguments up to 0.8: requests that are answered together.
MOST_REQUESTS = 256
_DTYPE: DType = "bfloat16"


@dataclass(frozen=True)
class ServingPrediction:
    """Of one GPU under full load."""

    requests_per_second: float
    requests_together: int
    """As many as memory holds, at most MOST_REQUESTS."""
    output_tokens_per_second: float


def predict_throughput(
    architecture: Architecture, hardware: Hardware, prompt_tokens: float, answer_tokens: float
) -> ServingPrediction:
    """Throughput of the merged model for requests of these lengths.

    Raises:
        ConfigError: the weights, or one request beside them, do not fit in the GPU's memory.
    """
    size = BYTES[_DTYPE]
    weights_bytes = architecture.parameters * size
    kept = 2 * architecture.layers * architecture.key_value_size * size
    longest_bytes = kept * (prompt_tokens + answer_tokens)
    room_bytes = hardware.memory_bytes - hardware.context_bytes - weights_bytes
    together = min(MOST_REQUESTS, int(room_bytes // longest_bytes))
    if together < 1:
        raise ConfigError(
            f"cost.own.gpu: {architecture.model_type} of {weights_bytes / GIB:.1f} GiB in 16 bits "
            f"does not fit in the {hardware.memory_bytes / GIB:.1f} GiB of {hardware.name}. Name "
            "a larger GPU, or give cost.own.requests_per_second as you measured it."
        )
    operations = 2 * architecture.parameters / hardware.rate(_DTYPE)
    # In the mean a request being answered has its prompt and half its answer behind it.
    read_bytes = weights_bytes + together * kept * (prompt_tokens + answer_tokens / 2)
    step = max(read_bytes / hardware.bandwidth_bytes_per_second, together * operations)
    seconds = prompt_tokens * operations + answer_tokens * step / together
    return ServingPrediction(1 / seconds, together, answer_tokens / seconds)
