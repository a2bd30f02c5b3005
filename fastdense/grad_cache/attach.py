"""A loss value whose backward sends stored gradients on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(loss: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Give a loss value the gradients that were computed along with it.

    Args:
        loss: scalar; its value is kept, its own graph (if any) is not used.
        tensors: what the gradients belong to: representations with a graph, those of a
            :class:`~fastdense.grad_cache.CachedForward`, a learnable scale. One that needs no gradient is passed over.
        gradients: d loss / d tensor, one for each entry of ``tensors``, of the same shape; any floating dtype.

    Returns:
        A scalar equal to ``loss``. Its backward multiplies ``gradients`` by the incoming gradient (a loss scale, a
        division for accumulation) and hands them to ``tensors`` in their dtype.

    Raises:
        ValueError: ``loss`` is no scalar, or ``tensors`` and ``gradients`` do not match in number or shape.
    """
    if loss.dim() != 0:
        raise ValueError(f"loss must be a scalar, not of shape {tuple(loss.shape)}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    gradient_shapes = [tuple(gradient.shape) for gradient in gradients]
    if gradient_shapes != shapes:
        raise ValueError(f"gradients must have the shapes of tensors, {shapes}, not {gradient_shapes}")
    detached = [gradient.detach() for gradient in gradients]
    return _AttachGradients.apply(loss.detach(), detached, *tensors)


class _AttachGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            (gradient * grad_output).to(dtype) if wanted else None
            for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *scaled
