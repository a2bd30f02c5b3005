"""The in-batch contrastive loss: one formula, several implementations."""

from fastdense.loss.backends import backends
from fastdense.loss.contrastive import (
    ContrastiveLoss,
    ContrastiveResult,
    contrastive_loss,
    contrastive_loss_and_grad,
)

__all__ = ["ContrastiveLoss", "ContrastiveResult", "backends", "contrastive_loss", "contrastive_loss_and_grad"]
