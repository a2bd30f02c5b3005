"""float32 linear layers on a CPU, with products made by either of two libraries.

torch has these products made by MKL. oneDNN, which it brings along for other precisions, makes them faster on some
processors and slower on others (:mod:`fastdense.training.linear_choice` measures which). Both are float32 throughout.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Product = Literal["outputs", "input gradients", "weight gradients"]
Library = Literal["torch", "oneDNN"]
Ways = dict[Library, Callable[[], Tensor]]

_LEAST_WEIGHTS = 2**16  # a layer with fewer takes no time that shows


class ChosenLinear(nn.Linear):
    """``nn.Linear`` with some of its products made by oneDNN: those of float32 on a CPU, outside autocast.

    oneDNN cannot sum over no rows; an empty input goes the usual way, too.
    """

    by_onednn: frozenset[Product] = frozenset()

    def forward(self, input: Tensor) -> Tensor:
        is_float32 = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not is_float32 or input.device.type != "cpu" or input.numel() == 0:
            return super().forward(input)
        result: Tensor = _Linear.apply(input, self.weight, self.bias, self.by_onednn)
        return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, by_onednn: frozenset[Product]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.by_onednn = by_onednn
        return _onednn(input, weight, bias) if "outputs" in by_onednn else F.linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows, inputs = gradient.reshape(-1, weight.shape[0]), input.reshape(-1, weight.shape[1])
        chosen: list[Tensor | None] = [None, None, None, None]
        ways = _gradients(rows, inputs, weight)
        for place, product in enumerate(ways):
            if ctx.needs_input_grad[place]:
                chosen[place] = ways[product]["oneDNN" if product in ctx.by_onednn else "torch"]()
        if chosen[0] is not None:
            chosen[0] = chosen[0].view(input.shape)
        if ctx.needs_input_grad[2]:
            chosen[2] = rows.sum(0)
        return tuple(chosen)


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right.T + bias"""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


def _gradients(gradient: Tensor, inputs: Tensor, weight: Tensor) -> dict[Product, Ways]:
    """Of inputs [tokens, inner] and weight [outer, inner]."""
    return {
        "input gradients": {"torch": lambda: gradient @ weight, "oneDNN": lambda: _onednn(gradient, weight.T)},
        "weight gradients": {"torch": lambda: gradient.T @ inputs, "oneDNN": lambda: _onednn(gradient.T, inputs.T)},
    }


def products(tokens: int, inner: int, outer: int) -> dict[Product, Ways]:
    """The products of a linear layer from width ``inner`` to ``outer``, on random numbers, by either library."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((tokens, inner), (outer, inner), (tokens, outer))
    )
    outputs: Ways = {"torch": lambda: inputs @ weight.T, "oneDNN": lambda: _onednn(inputs, weight)}
    return {"outputs": outputs, **_gradients(gradient, inputs, weight)}


def large_layers(model: nn.Module) -> list[nn.Linear]:
    """The model's float32 layers whose products take time."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, ChosenLinear.forward)
        if module.weight.dtype == torch.float32 and module.weight.numel() >= _LEAST_WEIGHTS
    ]


def use_onednn(model: nn.Module, chosen: Iterable[Product]) -> None:
    """Let oneDNN make these products, if any, in the model's large float32 layers; parameters, names and hooks stay."""
    by_onednn = frozenset(chosen)
    for layer in large_layers(model) if by_onednn else ():
        layer.__class__ = ChosenLinear
        assert isinstance(layer, ChosenLinear)
        layer.by_onednn = by_onednn


def onednn_missing() -> bool:
    """Whether this build of torch cannot have oneDNN make a float32 product."""
    return not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
