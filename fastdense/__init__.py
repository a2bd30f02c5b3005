"""Train dense retrievers with in-batch negatives."""

from fastdense.loss import (
    ContrastiveLoss,
    ContrastiveResult,
    backends,
    contrastive_loss,
    contrastive_loss_and_grad,
)

__version__ = "0.1.0"

__all__ = [
    "ContrastiveLoss",
    "ContrastiveResult",
    "__version__",
    "backends",
    "contrastive_loss",
    "contrastive_loss_and_grad",
]
