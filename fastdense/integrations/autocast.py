"""Autocast, as the matrix products that the fused loss replaces would take it."""

import torch
from torch import Tensor


def as_operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype in which ``torch.mm`` would multiply them here.

    The fused loss computes in the dtype of its inputs, autocast or not. A drop-in stands where a product stood, whose
    inputs autocast rounds (float64 excepted), so it rounds them too; sums and scores stay in float32.
    """
    return tuple(_as_operand(tensor) for tensor in tensors)


def _as_operand(tensor: Tensor) -> Tensor:
    device_type = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))
