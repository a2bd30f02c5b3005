"""The loss and gradients of other projects' GPU kernels, by their public interfaces.

They are Triton kernels for CUDA tensors. What they need or lack stands with each; a shape that one cannot take is its
own error, which the bench shows in place of its time.
"""

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def liger(module: Any, scale: float) -> Loss:
    """Liger's fused linear cross-entropy: the passages are the layer's weight."""
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda query, passage, target: loss(passage, scale * query, target)


def cut_cross_entropy(module: Any, scale: float) -> Loss:
    """Apple's kernel, with its filter of small gradients, which is on unless one asks otherwise."""
    return lambda query, passage, target: module.linear_cross_entropy(scale * query, passage, target, impl="cce")


def inf_cl(module: Any, scale: float) -> Loss:
    """Inf-CL on one GPU. Its kernel takes heads of at most 256: it is given the largest power of two in the width."""

    def loss(query: Tensor, passage: Tensor, target: Tensor) -> Tensor:
        head = math.gcd(query.shape[1], 256)
        return module.cal_flash_loss(query, passage, target, scale=scale, head_dim=head).mean()

    return loss


def memeff(module: Any, scale: float) -> Loss:
    """memeff's one-directional loss without its false-negative mask: as many passages as queries, each its own."""
    loss = module.MemoryEfficientQwen3Loss(temperature=1 / scale, margin=2.0, normalized_inputs=True, stable=False)

    def checked(query: Tensor, passage: Tensor, target: Tensor) -> Tensor:
        if len(query) != len(passage):
            raise ValueError(f"takes as many passages as queries, not {len(passage)} for {len(query)}")
        return loss(query, passage)

    return checked


# Name in the tables, module, and what makes the loss.
PEERS: dict[str, tuple[str, Callable[[Any, float], Loss]]] = {
    "Liger": ("liger_kernel.transformers", liger),
    "cut-cross-entropy": ("cut_cross_entropy", cut_cross_entropy),
    "Inf-CL": ("inf_cl", inf_cl),
    "memeff": ("memeff", memeff),
}


def make_peer(name: str, device: str, scale: float) -> Loss | None:
    """The loss of one of :data:`PEERS`; None where its package or a GPU is missing."""
    module, make = PEERS[name]
    there = device.startswith("cuda") and find_spec(module.partition(".")[0])
    return make(import_module(module), scale) if there else None
