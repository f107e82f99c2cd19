"""Bytes that autograd keeps between forward and backward, and what passes while it works.

Derived from what transformers 5.23 (`models/llama/modeling_llama.py` and its kin,
`integrations/sdpa_attention.py`) and PEFT 0.21 (`tuners/lora/layer.py`, `bnb.py`) save, and
checked tensor by tensor: a test hooks autograd's saved tensors of small models of each family.

N tokens in a micro-batch, B rows, T tokens of a row, H hidden, I intermediate, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.estimate.architecture import Architecture, LinearModule
from luthier.estimate.shape import ADAPTER_BYTES, BYTES, TrainingShape

_FLOAT32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch."""

    layer: int
    """Kept by one decoder layer, attention without."""
    attention: int
    """Kept by one layer's attention: q, k, v, output, masks or scores."""
    layer_input: int
    """What gradient checkpointing keeps of a layer."""
    outer: int
    """Kept outside the layers: the last norm, the rotary tables."""
    prefix_cache: int
    """Keys and values of all layers with the shared prefix, there until the loss is."""
    head_forward: int
    """Logits of the supervised positions and their log-softmax."""
    head_backward: int
    """That log-softmax and two gradients of it."""
    passing: int
    """Gradients of one layer while its backward runs."""


def activations(architecture: Architecture, shape: TrainingShape, *, on_cuda: bool) -> Activations:
    """What one micro-batch keeps."""
    width = BYTES[shape.dtype]
    tokens = shape.model_tokens
    # The last norm; the first one keeps nothing where no gradient comes to the embeddings.
    embeds = shape.adapter is None or shape.gradient_checkpointing
    outer = tokens * architecture.hidden * _norm_bytes(architecture, shape) * embeds
    outer += 2 * tokens * architecture.head_dim * width
    return Activations(
        layer=_layer(architecture, shape, on_cuda=on_cuda),
        attention=_attention(architecture, shape, on_cuda=on_cuda),
        layer_input=tokens * architecture.hidden * width,
        outer=outer,
        prefix_cache=_prefix_cache(architecture, shape),
        head_forward=_head(architecture, shape)[0],
        head_backward=_head(architecture, shape)[1],
        passing=_passing(architecture, shape, on_cuda=on_cuda),
    )


def _norm_bytes(architecture: Architecture, shape: TrainingShape) -> int:
    """An RMSNorm keeps its input in float32 (the residual stream itself when that is float32);
    one that is trained keeps the normalised values too. A fused one keeps its input as it is."""
    if _fuses(architecture, shape):
        return BYTES[shape.dtype]
    return _FLOAT32 + (BYTES[shape.dtype] if shape.adapter is None else 0)


def _fuses(architecture: Architecture, shape: TrainingShape) -> bool:
    """Whether `training/kernels.py` covers norms and gates: those of Llama's formula."""
    return shape.fused_kernels and not architecture.model_type.startswith("gemma")


def _layer(architecture: Architecture, shape: TrainingShape, *, on_cuda: bool) -> int:
    N, I, width = shape.model_tokens, architecture.intermediate, BYTES[shape.dtype]  # noqa: E741
    norms = architecture.norms_per_layer * architecture.hidden
    if architecture.query_norms:
        norms += architecture.query_size + architecture.key_value_size
    # The activation function keeps its input, the product both factors; fused, gate and up.
    factors = 2 if _fuses(architecture, shape) and not architecture.fused else 3
    kept = N * (norms * _norm_bytes(architecture, shape) + factors * I * width)
    math = math_attention(architecture, shape, on_cuda=on_cuda)
    for group in _groups(architecture):
        # Fused attention keeps its output, and o_proj reads it; with one matrix for q, k and v the
        # heads lie otherwise in memory, and o_proj reads a copy.
        is_kept = group[0].suffix == "o_proj" and not math and not architecture.fused
        kept += _linear_inputs(group, shape, is_kept=is_kept, on_cuda=on_cuda)
    return kept


def _groups(architecture: Architecture) -> Iterator[list[LinearModule]]:
    """Modules of a layer that read the same tensor."""
    readers: dict[str, list[LinearModule]] = {}
    for module in architecture.layer_modules:
        part, _, name = module.name.partition(".")
        readers.setdefault(name if name in {"o_proj", "down_proj"} else part, []).append(module)
    yield from readers.values()


def _linear_inputs(
    modules: list[LinearModule], shape: TrainingShape, *, is_kept: bool, on_cuda: bool
) -> int:
    """Inputs that modules reading one tensor keep: for the gradient of their own weights, or of
    their adapters'. A frozen weight needs only itself."""
    N, inputs, width = shape.model_tokens, modules[0].inputs, BYTES[shape.dtype]
    if shape.adapter is None:
        return 0 if is_kept else N * inputs * width
    adapted = [(module, rank) for module in modules if (rank := _layer_rank(module, shape)) > 0]
    kept = sum(N * rank * ADAPTER_BYTES for _, rank in adapted)
    if shape.adapter.use_dora:  # the base's output and the adapter's, for the magnitude
        kept += sum(N * module.outputs * (width + ADAPTER_BYTES) for module, _ in adapted)
    if shape.quantization == "int8" and not is_kept:
        kept += N * inputs * width  # bitsandbytes' MatMul8bitLt keeps its input
        is_kept = True
    if shape.adapter.dropout:
        # What was dropped out is the adapter's input; the mask is boolean in CUDA's fused kernel,
        # and a float factor on a CPU (torch 2.13 `Dropout.cpp`).
        mask = 1 if on_cuda else ADAPTER_BYTES
        if _fuses_adapters(shape) and not is_kept:
            kept += N * inputs * width  # the undropped input beside it
        return kept + len(adapted) * N * inputs * (ADAPTER_BYTES + mask)
    if width == ADAPTER_BYTES or _fuses_adapters(shape):
        return kept + N * inputs * width * (bool(adapted) and not is_kept)
    # Each adapter casts its input to float32 for itself.
    return kept + len(adapted) * N * inputs * ADAPTER_BYTES


def _fuses_adapters(shape: TrainingShape) -> bool:
    """Whether layers that read one tensor keep it once and uncast (`training/kernels.py`)."""
    return shape.fused_kernels and shape.quantization is None


def _layer_rank(module: LinearModule, shape: TrainingShape) -> int:
    """The rank that the module has in most layers: that of a layer in the middle stands for all
    when a pattern names single ones."""
    assert shape.adapter is not None
    return shape.adapter.rank(
        LinearModule(f"model.layers.0.{module.name}", module.inputs, module.outputs)
    )


def math_attention(architecture: Architecture, shape: TrainingShape, *, on_cuda: bool) -> bool:
    """Whether scores of every pair of tokens are kept.

    With `eager`; and where torch's fused kernels refuse: soft-capped scores, and on CUDA float32
    with grouped keys and no mask, which neither flash (16 bits only) nor the memory-efficient
    kernel (no grouped keys) takes (torch 2.13 `transformers/cuda/sdp_utils.cpp`).
    """
    if shape.attention == "eager" or architecture.attention_softcap:
        return True
    grouped = architecture.heads != architecture.key_value_heads
    return on_cuda and shape.dtype == "float32" and grouped and not _has_mask(shape)


def _has_mask(shape: TrainingShape) -> bool:
    return shape.attention != "flash" and (shape.masked or shape.shared_prefix_tokens > 0)


def _attention(architecture: Architecture, shape: TrainingShape, *, on_cuda: bool) -> int:
    """Of one layer: q, k, v after the rotation, the output, and what is square in T."""
    Q, KV, width = architecture.query_size, architecture.key_value_size, BYTES[shape.dtype]
    own = shape.tokens_per_row - shape.shared_prefix_tokens
    tokens, keys = shape.rows * own, shape.rows * shape.tokens_per_row
    math = math_attention(architecture, shape, on_cuda=on_cuda)
    # transformers repeats grouped keys and values where a mask keeps kernels from doing so.
    repeated = (math or _has_mask(shape)) and Q != KV
    value = Q + 2 * KV if architecture.fused and not repeated else Q if repeated else KV
    kept = tokens * Q * width + keys * ((Q if repeated else KV) + value) * width
    pairs = shape.rows * own * shape.tokens_per_row
    if math:
        copies = _FLOAT32 + (width if width != _FLOAT32 else 0)
        copies += width if architecture.attention_softcap else 0
        return kept + pairs * architecture.heads * copies
    kept += tokens * (Q * width + architecture.heads * _FLOAT32)
    # Each layer turns the boolean mask into one of numbers and keeps it.
    kept += pairs * width if _has_mask(shape) else 0
    return kept + shape.shared_prefix_tokens * (2 * Q + value) * width


def _prefix_cache(architecture: Architecture, shape: TrainingShape) -> int:
    """Prefix and own tokens of every row; attention keeps the same where heads are not grouped."""
    if not shape.shared_prefix_tokens or architecture.heads == architecture.key_value_heads:
        return 0
    tokens = shape.rows * shape.tokens_per_row
    layer = 2 * tokens * architecture.key_value_size * BYTES[shape.dtype]
    return architecture.layers * layer


def _head(architecture: Architecture, shape: TrainingShape) -> tuple[int, int]:
    """Of two moments, for K head positions and S supervised ones a row (`training/loss.py`).

    Forward: logits (K; chosen from them S), in float32 (S), log-softmax (S). Backward: the
    log-softmax and two gradients of it (S).
    """
    V, width = architecture.vocabulary, BYTES[shape.dtype]
    supervised = shape.rows * shape.supervised_tokens_per_row
    chosen_of = shape.rows * (shape.head_positions_per_row or 0)
    cast = _FLOAT32 if width != _FLOAT32 else 0
    # Soft caps: x / cap, tanh (kept), x cap.
    capped = (chosen_of or supervised) * width if architecture.logit_softcap else 0
    forward = 2 * capped + chosen_of * width + supervised * (width + cast + _FLOAT32)
    return V * forward, V * (capped + supervised * 3 * _FLOAT32)


def _passing(architecture: Architecture, shape: TrainingShape, *, on_cuda: bool) -> int:
    """In the backward of a layer: gradients of the MLP's product or factors through the base
    weights and through the adapters; of the scores where they are kept; and one unpacked 4-bit
    matrix. How many are alive at once is counted by the test that follows every tensor."""
    width = BYTES[shape.dtype]
    gates = _fuses(architecture, shape) and not architecture.fused
    per_element = width + ADAPTER_BYTES
    if width != ADAPTER_BYTES:  # casts between the adapter's dtype and the base's
        per_element = 2 * per_element if architecture.fused else per_element + width
    elif gates:
        per_element += ADAPTER_BYTES
    mlp = shape.model_tokens * architecture.intermediate * per_element
    scores = 0
    if math_attention(architecture, shape, on_cuda=on_cuda):
        pairs = shape.rows * shape.tokens_per_row**2
        scores = pairs * architecture.heads * _FLOAT32
    largest = max(module.inputs * module.outputs for module in architecture.layer_modules)
    weight = largest * BYTES[shape.compute_dtype] if shape.quantization else 0
    if shape.adapter is not None and shape.adapter.use_dora:
        weight += 3 * largest * ADAPTER_BYTES  # base, update and sum as matrices
    return max(mlp, scores) + weight
