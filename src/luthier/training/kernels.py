"""The same arithmetic as PEFT's LoRA layers and the model's norms and gates, with less work.

Exact up to the order of sums. The modules stay PEFT's and transformers': `speed_up` covers their
`forward`, `slow_down` uncovers it. Norms and gates keep their inputs for the backward pass and
nothing in between; LoRA layers are in fused_lora.py.

Not for FSDP, which gathers a matrix when its module is called: here matrices are read directly.
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from luthier.training.fused_lora import FusedLora, why_not_fused
from luthier.training.loss import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    Forward = Callable[..., Tensor]

# Names of linear layers that one tensor goes into, in the order in which it does: transformers
# 5.23, models/{llama,mistral,qwen2,qwen3,gemma2,gemma3,smollm3,olmo2}. Whether it is the same
# tensor is seen at every call.
SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Units in the last place of the largest number by which a covered norm or gate may differ from
# its module's own. Another formula, such as a norm with 1 + weight, differs by far more.
PROBE_TOLERANCE_ULP = 16


def speed_up(model: "nn.Module") -> list[str]:
    """Cover the forward of what can be computed with less work; again is as once.

    Returns:
        What was covered and how often; what was not, and why.
    """
    slow_down(model)
    said: dict[str, int] = {}
    for group in _lora_groups(model):
        reasons = [why_not_fused(layer) for layer in group]
        able = [layer for layer, reason in zip(group, reasons, strict=True) if reason is None]
        fused = FusedLora(able)
        for position, layer in enumerate(able):
            _cover(layer, partial(fused.forward, position))
        for reason in reasons:
            line = "LoRA layers fused" if reason is None else f"LoRA layers as they are: {reason}"
            said[line] = said.get(line, 0) + 1
    with evaluating(model):
        covered = {"norms": _cover_norms(model), "gates": _cover_gates(model)}
    said |= {f"{name} fused": number for name, number in covered.items() if number}
    return [f"{number} {line}" for line, number in said.items()]


def slow_down(model: "nn.Module") -> None:
    """Give every module its own forward again."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "is_luthier_kernel", False):
            del module.forward


def _cover(module: "nn.Module", forward: "partial[Tensor]") -> None:
    forward.is_luthier_kernel = True  # type: ignore[attr-defined]
    module.forward = forward


def _lora_groups(model: "nn.Module") -> "Iterator[list[Any]]":
    """LoRA layers, those that read the same tensor together."""
    from peft.tuners.lora import LoraLayer

    grouped: set[int] = set()
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SHARED_INPUT:
            found = [children[name] for name in names if isinstance(children.get(name), LoraLayer)]
            grouped |= {id(layer) for layer in found}
            if found:
                yield found
    for module in model.modules():
        if isinstance(module, LoraLayer) and id(module) not in grouped:
            yield [module]


def _cover_norms(model: "nn.Module") -> int:
    """Cover RMS norms (arXiv 1910.07467) that prove to be x / rms(x) x weight."""
    import torch

    covered = 0
    for module in model.modules():
        weight, epsilon = _norm_settings(module)
        if weight is None or epsilon is None or weight.requires_grad:
            continue
        forward = partial(_norm_forward, module, epsilon)
        x_NI = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).to(weight.dtype)
        if _same(module, forward, x_NI.view(2, -1)):
            _cover(module, forward)
            covered += 1
    return covered


def _norm_settings(module: Any) -> "tuple[Tensor | None, float | None]":
    if not type(module).__name__.endswith("RMSNorm"):
        return None, None
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return getattr(module, "weight", None), epsilon


def _norm_forward(module: Any, epsilon: float, x: "Tensor") -> "Tensor":
    normed: Tensor = _norm_function().apply(x, module.weight, epsilon)
    return normed


@cache
def _norm_function() -> Any:
    import torch

    class NormFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: "Tensor", weight: "Tensor", epsilon: float) -> "Tensor":
            # The order of LlamaRMSNorm (transformers 5.23), so that the outputs are the same bits.
            x32 = x.float()
            inverse = x32.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            ctx.save_for_backward(x, inverse, weight)
            normed = (x32 * inverse).to(x.dtype)
            return normed.mul_(weight) if weight.dtype == x.dtype else normed * weight

        @staticmethod
        def backward(ctx: Any, gradient: "Tensor") -> tuple[Any, ...]:
            x, inverse, weight = ctx.saved_tensors
            x32, d_normed = x.float(), (gradient * weight).to(x.dtype).float()
            slope = torch.linalg.vecdot(d_normed, x32).unsqueeze(-1) * inverse.pow(3)
            d_x = d_normed.mul_(inverse).addcmul_(x32, slope.div_(-x.shape[-1]))
            return d_x.to(x.dtype), None, None

    return NormFunction


def _cover_gates(model: "nn.Module") -> int:
    """Cover feed-forward blocks that prove to be SwiGLU (arXiv 2002.05202), which is
    down(silu(gate(x)) x up(x)); blocks of one class are proven once."""
    import torch

    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    proven: dict[Any, bool] = {}
    covered = 0
    for module in model.modules():
        children = dict(module.named_children())
        if not {"gate_proj", "up_proj", "down_proj", "act_fn"} <= children.keys():
            continue
        forward = partial(_gated_forward, module)
        kind = (type(module), type(children["act_fn"]))
        if kind not in proven:
            width = getattr(children["gate_proj"], "in_features", embeddings.weight.shape[1])
            x_NI = torch.linspace(-2, 3, 2 * width, device=embeddings.weight.device)
            proven[kind] = _same(module, forward, x_NI.view(2, -1).to(embeddings.weight.dtype))
        if proven[kind]:
            _cover(module, forward)
            covered += 1
    return covered


def _gated_forward(module: Any, x: "Tensor") -> "Tensor":
    gated = _gate_function().apply(module.gate_proj(x), module.up_proj(x))
    down: Tensor = module.down_proj(gated)
    return down


@cache
def _gate_function() -> Any:
    import torch

    class GateFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gate: "Tensor", up: "Tensor") -> "Tensor":
            ctx.save_for_backward(gate, up)
            return torch.nn.functional.silu(gate).mul_(up)

        @staticmethod
        def backward(ctx: Any, gradient: "Tensor") -> tuple[Any, ...]:
            gate, up = ctx.saved_tensors
            d_up = torch.nn.functional.silu(gate).mul_(gradient)
            return torch.ops.aten.silu_backward(gradient * up, gate), d_up

    return GateFunction


def _same(module: "nn.Module", forward: "Forward", x: "Tensor") -> bool:
    """Whether `forward` gives what the module's own does, measured on `x`."""
    import torch

    with torch.no_grad():
        expected, found = module.forward(x), forward(x)
    limit = PROBE_TOLERANCE_ULP * torch.finfo(x.dtype).eps * float(expected.abs().max())
    return expected.dtype == found.dtype and bool((expected - found).abs().max() <= limit)
