"""The calls of GradCache's loss objects, which Tevatron has copies of: mixed in before the class they speed up."""

from typing import Any

from torch import Tensor

from fastdense.integrations.autocast import as_operands
from fastdense.integrations.global_batch import global_batch_loss
from fastdense.loss import contrastive_loss

FUSED_REDUCTIONS = ("mean", "sum")


class SimpleCall:
    """``SimpleContrastiveLoss.__call__``. What the fused loss does not cover goes to the class below."""

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """[N, D] queries and [M, D] passages to the loss, shape [], float32, attached to both."""
        if not _covers(self, x, y, target, reduction):
            return super().__call__(x, y, target=target, reduction=reduction)  # type: ignore[misc]
        x, y = as_operands(x, y)
        return contrastive_loss(x, y, target, reduction=reduction)


class DistributedCall:
    """``DistributedContrastiveLoss.__call__``: the same loss and gradients, from this rank's rows only.

    What the fused loss does not cover goes to the class below.
    """

    def __call__(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        """[N, D] queries and [M, D] passages of this rank to the loss of all ranks' queries, shape [], float32."""
        reduction, target = kwargs.get("reduction", "mean"), kwargs.get("target")
        if not _covers(self, x, y, target, reduction):
            return super().__call__(x, y, **kwargs)  # type: ignore[misc]
        x, y = as_operands(x, y)
        loss = global_batch_loss(x, y, target, reduction=reduction)
        # Only Tevatron's class has the flag; GradCache's leaves the factor to its user.
        return loss * self.word_size if getattr(self, "scale_loss", False) else loss  # type: ignore[attr-defined]


def _covers(loss: object, x: Tensor, y: Tensor, target: Tensor | None, reduction: str) -> bool:
    """Whether the fused loss computes this: a reduced one, of one column a row.

    ``F.cross_entropy`` also takes shares of several columns, and leaves out rows whose target is negative. On a GPU a
    look at targets would wait for it: there such a row's loss is nan.
    """
    if reduction not in FUSED_REDUCTIONS:
        return False
    if target is None:
        return _fits(loss, x, y)
    return target.ndim == 1 and not target.is_floating_point() and not (target.is_cpu and bool((target < 0).any()))


def _fits(loss: object, x: Tensor, y: Tensor) -> bool:
    """Whether each query has as many passages as the object was made for; Tevatron's takes any number."""
    expected = len(x) * getattr(loss, "target_per_qry", len(y) // max(1, len(x)))
    return len(y) == expected
