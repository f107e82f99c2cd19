"""Peak memory of training, part by part, from a model's shape and the batch's."""

from dataclasses import dataclass, fields

from luthier.estimate.activations import Activations, activations
from luthier.estimate.architecture import Architecture
from luthier.estimate.hardware import Hardware
from luthier.estimate.shape import (
    ADAPTER_BYTES,
    BYTES,
    STATE_BYTES,
    Trained,
    TrainingShape,
    trained,
)

_FLOAT32 = 4
# bitsandbytes 0.50: a scale for 64 weights, in float32, or in 8 bits with a float32 scale for 256
# of them (QLoRA, arXiv 2305.14314, section 3); a table of 256 float32 for each module.
_BLOCK, _NESTED_BLOCK, _TABLE_BYTES = 64, 256, 256 * _FLOAT32


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes in use at the moment of the peak, by part; `total` is their sum."""

    weights: int
    quantization_constants: int
    stored: int
    """Pages of the weights' file that are resident beside the weights made of it; CPU only."""
    adapter: int
    gradients: int
    optimizer_states: int
    activations: int
    attention: int
    head: int
    working: int
    """Gradients that pass through a layer, unpacked 4-bit matrices, the optimizer's own."""
    allocator: int
    context: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated` counts."""
        return self.total - self.allocator - self.context

    def parts(self) -> dict[str, int]:
        """Bytes by part, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Moment:
    """What is there besides weights and optimizer states at one moment of a step."""

    gradients: int = 0
    activations: int = 0
    attention: int = 0
    head: int = 0
    working: int = 0
    stored: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.stored + self.in_flight

    @property
    def in_flight(self) -> int:
        return self.activations + self.attention + self.head + self.working


def predict_memory(
    architecture: Architecture, shape: TrainingShape, hardware: Hardware
) -> MemoryPrediction:
    """The peak of one process over the steps after the first, when optimizer states exist.

    Raises:
        ConfigError: no module of the model has a name in `target_modules`.
    """
    found = trained(architecture, shape)
    kept = activations(architecture, shape, on_cuda=hardware.is_cuda)
    moments = _moments(architecture, shape, found, kept, on_cuda=hardware.is_cuda)
    peak = max(moments, key=lambda moment: moment.total)
    adapter = 0 if shape.adapter is None else found.parameters * ADAPTER_BYTES
    states = _optimizer_states(shape, found)
    mapped, while_loading = (0, 0) if hardware.is_cuda else _stored(architecture, shape)
    if while_loading > adapter + states + peak.total:
        # Then there is nothing yet but the weights.
        peak, adapter, states = _Moment(stored=while_loading), 0, 0
    weights, constants = _weights(architecture, shape)
    return MemoryPrediction(
        weights=weights,
        quantization_constants=constants,
        stored=mapped + peak.stored,
        adapter=adapter,
        gradients=peak.gradients,
        optimizer_states=states,
        activations=peak.activations,
        attention=peak.attention,
        head=peak.head,
        working=peak.working,
        allocator=int(hardware.slack_fraction * peak.in_flight),
        context=hardware.context_bytes,
    )


def _weights(architecture: Architecture, shape: TrainingShape) -> tuple[int, int]:
    """Of the weights themselves, and of what their quantisation needs beside them."""
    width = BYTES[shape.dtype] if shape.adapter is not None else ADAPTER_BYTES
    if shape.quantization is None:
        return architecture.parameters * width, 0
    biases = sum(module.outputs for module in architecture.modules if module.bias)
    matrices = sum(module.inputs * module.outputs for module in architecture.modules)
    whole = (architecture.parameters - matrices - biases) * width + biases * width
    if shape.quantization == "int8":
        scales = sum(module.outputs for module in architecture.modules) * _FLOAT32
        return whole + matrices, scales
    blocks = matrices // _BLOCK
    if not shape.double_quantization:
        return whole + matrices // 2, blocks * _FLOAT32
    nested = blocks + blocks // _NESTED_BLOCK * _FLOAT32
    return whole + matrices // 2, nested + len(architecture.modules) * _TABLE_BYTES


def _stored(architecture: Architecture, shape: TrainingShape) -> tuple[int, int]:
    """Pages of the weights' file that stay, and those that are there while it is loaded.

    safetensors maps the file. Weights of its own dtype are its pages; quantised ones are made of
    pages that stay, because the embeddings are pages of the same mapping. Where every tensor is
    converted, the whole file is resident until the last one is (transformers 5.23, safetensors
    0.8; measured by `benchmarks/cpu_memory.py`).
    """
    dtype = shape.dtype if shape.adapter is not None else "float32"
    if architecture.stored_dtype != dtype:
        return 0, architecture.parameters * BYTES.get(architecture.stored_dtype, 2)
    if shape.quantization is None:
        return 0, 0
    return sum(m.inputs * m.outputs for m in architecture.modules) * BYTES[dtype], 0


def _optimizer_states(shape: TrainingShape, found: Trained) -> int:
    if shape.optimizer == "adafactor":
        return found.adafactor_elements * _FLOAT32
    return int(STATE_BYTES[shape.optimizer] * found.parameters)


def _moments(
    architecture: Architecture,
    shape: TrainingShape,
    found: Trained,
    kept: Activations,
    *,
    on_cuda: bool,
) -> list[_Moment]:
    """The moments of a step that can be its peak: the head forward and backward; the last layer's
    backward; the first layer's, all gradients there; the embedding's; the optimizer's step."""
    gradients = found.parameters * ADAPTER_BYTES
    earlier = gradients if shape.gradient_accumulation_steps > 1 else 0
    head_gradient = _head_gradient(architecture, shape)
    layers = architecture.layers
    if shape.gradient_checkpointing:
        kept_inputs, attention = layers * kept.layer_input + kept.outer, 0
        working, layer_attention = kept_inputs + kept.layer, kept.attention
    else:
        kept_inputs, attention = layers * kept.layer + kept.outer, layers * kept.attention
        working, layer_attention = kept_inputs, attention
    cached = attention + kept.prefix_cache
    # torch's AdamW updates all tensors at once on CUDA, with one square root of each between
    # (`optim/adamw.py` `foreach`), one after another elsewhere; fused and 8-bit ones keep none.
    temporary = 0
    if shape.optimizer == "adamw_torch":
        temporary = gradients if on_cuda else 2 * found.largest * _FLOAT32
    return [
        _Moment(earlier, kept_inputs, cached, kept.head_forward),
        _Moment(earlier, kept_inputs, attention, kept.head_backward),
        _Moment(earlier + head_gradient, working, layer_attention, 0, kept.passing),
        _Moment(gradients, kept.layer, kept.attention, 0, kept.passing),
        _Moment(gradients, working=_tied_gradient(architecture, shape)),
        _Moment(gradients, working=temporary),
    ]


def _head_gradient(architecture: Architecture, shape: TrainingShape) -> int:
    """The head's own gradient comes first, before any layer's activations are free."""
    is_trained = shape.adapter is None or "lm_head" in shape.adapter.modules_to_save
    return architecture.embedding_parameters * ADAPTER_BYTES * is_trained


def _tied_gradient(architecture: Architecture, shape: TrainingShape) -> int:
    """Embeddings that are also the head get a second gradient, which is added to the first."""
    return (
        architecture.embedding_parameters
        * ADAPTER_BYTES
        * (shape.adapter is None and architecture.tied)
    )
