"""How much of what a device can multiply a training step makes use of."""

import time
from collections.abc import Sequence

import torch
from torch import nn


def encoder_operations(encoder: nn.Module, lengths: Sequence[int]) -> float:
    """What the gradients of texts of so many tokens need: 6 for each token and each weight of a linear layer.

    Padding, second forward passes and copies of a text are no need. Attention's own products, some percent for texts of
    a hundred tokens, are left out. (The count of model FLOPs utilization in the paper on PaLM, appendix B.)
    """
    weights = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    return 6.0 * weights * sum(lengths)


def product_rate(device: str, dtype: str) -> float:
    """Operations a second of a large bare product, the best of five."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds[1:])
