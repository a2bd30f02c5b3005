"""Passages that score so high that they are taken for answers nobody has marked, and leave the softmax."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FalseNegativeFilter:
    """Leave column j out of row i where its similarity exceeds the target's less a margin.

    The rules of ``python -m fastdense.mine`` and of sentence-transformers' GISTEmbedLoss, on dot products (or
    cosines) s before the scale::

        left_out = (s > s_target - absolute) | (s > s_target - relative * abs(s_target))

    The target itself never is. Which columns are left out is no function that gradients flow through.

    Attributes:
        absolute: a number, negative to keep what is not above the target by more than that; None for no such rule.
        relative: a share of the target's similarity; None for no such rule.
    """

    absolute: float | None = None
    relative: float | None = None

    def __post_init__(self) -> None:
        if self.absolute is None and self.relative is None:
            raise ValueError("a filter needs a rule: pass absolute or relative")
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"the {name} margin must be a finite number, got {value}")

    def left_out(self, similarity: Tensor, label: Tensor) -> Tensor:
        """[rows, M] of the similarities [rows, M] and the targets' columns [rows, 1]."""
        target = similarity.gather(1, label)
        limit = torch.full_like(target, torch.inf)
        if self.absolute is not None:
            limit = target - self.absolute
        if self.relative is not None:
            limit = torch.minimum(limit, target - self.relative * target.abs())
        return (similarity > limit).scatter_(1, label, False)
