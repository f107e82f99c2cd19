"""LoRA layers that read the same tensor (q, k and v; gate and up) as one autograd node.

Their A matrices are one matrix product, the update is added to the frozen product in place, the
gradient of their input is summed in place, and the input is kept once for the backward pass.

N tokens, I input and O output features, r ranks of one adapter, R of a group's together.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def why_not_fused(layer: Any) -> str | None:
    """Why PEFT's own forward is needed; None when it is not. What is fused is the last branch of
    `Linear.forward` for one plain adapter (peft 0.21.2, tuners/lora/layer.py)."""
    import torch
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear:
        return f"{type(layer).__name__} on {type(layer.base_layer).__name__}"
    adapters = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(adapters) != 1:
        return f"{len(adapters)} active adapters"
    (name,) = adapters
    if name in layer.lora_variant:
        return type(layer.lora_variant[name]).__name__
    if layer.lora_bias.get(name) or layer.fan_in_fan_out:
        return "a bias of the adapter, or a transposed weight"
    if any(parameter.requires_grad for parameter in layer.base_layer.parameters()):
        return "its base weight is trained"
    return None


class FusedLora:
    """LoRA layers that read the same tensor. Calling the first computes all of them; the others
    hand out what waits for them."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, position: int, x: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
        """The output of layer `position` for `x`, (..., I) to (..., O)."""
        source, output = self._waiting.pop(position, (None, None))
        if output is not None and source is x:
            return output
        layer = self._layers[position]
        if args or kwargs or _needs_peft(layer, x):
            own: Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return own
        # Called out of turn, or with another tensor than the layer before it: alone.
        first, *others = _fused_outputs(self._layers if position == 0 else [layer], x)
        self._waiting = {place: (x, other) for place, other in enumerate(others, start=1)}
        return first


def _needs_peft(layer: Any, x: "Tensor") -> bool:
    """Whether this call is not a training step's: no gradient, adapter off or merged, autocast."""
    import torch

    return (
        not torch.is_grad_enabled()
        or layer.merged
        or layer.disable_adapters
        or x.dtype != layer.base_layer.weight.dtype
        or torch.is_autocast_enabled(x.device.type)
    )


def _fused_outputs(layers: list[Any], x: "Tensor") -> "tuple[Tensor, ...]":
    scales, weights, biases, downs, ups, dropped = [], [], [], [], [], []
    for layer in layers:
        (name,) = (name for name in layer.active_adapters if name in layer.lora_A)
        scales.append(layer.scaling[name])
        weights.append(layer.base_layer.weight)
        biases.append(layer.base_layer.bias)
        downs.append(layer.lora_A[name].weight)
        ups.append(layer.lora_B[name].weight)
        if layer.training and getattr(layer.lora_dropout[name], "p", 0.0):
            dropped.append(layer.lora_dropout[name](x.to(downs[-1].dtype)))
    outputs: tuple[Tensor, ...] = _lora_function().apply(
        scales, len(dropped), x, *weights, *biases, *downs, *ups, *dropped
    )
    return outputs


@cache
def _lora_function() -> Any:
    """y = x W' + b + s (x A') B' for each layer of a group; no gradient for W and b. With dropout
    every layer's A sees its own copy of x, as in PEFT."""
    import torch

    class LoraFunction(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, scales: list[float], drops: int, x: "Tensor", *matrices: Any
        ) -> tuple[Any, ...]:
            weights, biases, downs, ups, dropped = _fifths(matrices, len(scales))
            x_NI = _flat(x)
            updates_Nr = _down(x_NI, downs, dropped)
            outputs = []
            for number, (scale, update_Nr) in enumerate(zip(scales, updates_Nr, strict=True)):
                base_NO = torch.nn.functional.linear(x_NI, weights[number], biases[number])
                full_NO = base_NO.to(update_Nr.dtype)  # a copy only where the base is not float32
                full_NO.addmm_(update_Nr.mul_(scale), ups[number].t())
                outputs.append(full_NO.to(base_NO.dtype).view(*x.shape[:-1], -1))
            ctx.save_for_backward(x, *weights, *updates_Nr, *downs, *ups, *dropped)
            ctx.scales, ctx.drops = scales, drops
            return tuple(outputs)

        @staticmethod
        def backward(ctx: Any, *gradients: "Tensor") -> tuple[Any, ...]:
            x, *saved = ctx.saved_tensors
            count = len(ctx.scales)
            weights, updates_Nr, downs, ups, dropped = _fifths(saved, count)
            x_NI = _flat(x)
            gradients_NO = [_flat(gradient) for gradient in gradients]
            back_NR = downs[0].new_empty(len(x_NI), sum(map(len, downs)))
            backs_Nr = torch.split(back_NR, [len(down) for down in downs], dim=1)
            d_ups = []
            for number, gradient_NO in enumerate(gradients_NO):
                own_NO = gradient_NO.to(back_NR.dtype)
                torch.mm(own_NO, ups[number], out=backs_Nr[number]).mul_(ctx.scales[number])
                d_ups.append((updates_Nr[number].t() @ own_NO).t())
            d_downs, d_dropped = _down_gradients(x_NI, backs_Nr, back_NR, downs, dropped)
            d_x = None
            if ctx.needs_input_grad[2]:
                lora_NR = None if dropped else back_NR
                d_x = _input_gradient(gradients_NO, weights, lora_NR, downs).view_as(x)
            none = (None,) * count
            d_dropped = [part.view_as(x) for part in d_dropped]
            return None, None, d_x, *none, *none, *d_downs, *d_ups, *d_dropped

    return LoraFunction


def _fifths(tensors: Any, count: int) -> list[Any]:
    """Five lists of `count` tensors each; the fifth may be empty."""
    return [tensors[count * kind : count * (kind + 1)] for kind in range(5)]


def _flat(x: "Tensor") -> "Tensor":
    return x.reshape(-1, x.shape[-1])


def _joined(downs: "list[Tensor]") -> "Tensor":
    import torch

    return downs[0] if len(downs) == 1 else torch.cat(list(downs))


def _down(x_NI: "Tensor", downs: Any, dropped: Any) -> "list[Tensor]":
    """x A' of every layer."""
    import torch

    if dropped:
        return [_flat(own) @ down.t() for own, down in zip(dropped, downs, strict=True)]
    joined_NR = x_NI.to(downs[0].dtype) @ _joined(downs).t()
    return list(torch.split(joined_NR, [len(down) for down in downs], dim=1))


def _down_gradients(
    x_NI: "Tensor", backs_Nr: Any, back_NR: "Tensor", downs: Any, dropped: Any
) -> "tuple[list[Tensor], list[Tensor]]":
    """Gradients of the A matrices, and of their own inputs where these are not x."""
    import torch

    if not dropped:
        joined_RI = back_NR.t() @ x_NI.to(back_NR.dtype)
        return list(torch.split(joined_RI, [len(down) for down in downs])), []
    d_downs = [back.t() @ _flat(own) for back, own in zip(backs_Nr, dropped, strict=True)]
    return d_downs, [back @ down for back, down in zip(backs_Nr, downs, strict=True)]


def _input_gradient(
    gradients_NO: Any, weights: Any, back_NR: "Tensor | None", downs: Any
) -> "Tensor":
    d_x_NI: Tensor = gradients_NO[0] @ weights[0]
    for gradient_NO, weight in zip(gradients_NO[1:], weights[1:], strict=True):
        d_x_NI.addmm_(gradient_NO, weight)
    if back_NR is None:
        return d_x_NI
    if back_NR.dtype == d_x_NI.dtype:
        return d_x_NI.addmm_(back_NR, _joined(downs))
    return d_x_NI.add_(back_NR @ _joined(downs))
