"""Tevatron's training losses, without the score matrix.

    from fastdense.integrations.tevatron import fused

    DenseModel = fused(DenseModel)

and for its gradient-caching trainer, where ``trainer`` is the module ``tevatron.trainer`` (v1) or
``tevatron.retriever.gc_trainer`` (v2):

    trainer.SimpleContrastiveLoss = fused(trainer.SimpleContrastiveLoss)
    trainer.DistributedContrastiveLoss = fused(trainer.DistributedContrastiveLoss)

Written against v1 (0.1.0, branch tevatron-v1) and main of July 2026. Tevatron itself is not imported.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from fastdense.integrations.autocast import as_operands
from fastdense.integrations.global_batch import global_batch_loss
from fastdense.integrations.loss_calls import DistributedCall, SimpleCall
from fastdense.loss import contrastive_loss

__all__ = ["fused"]

DOT_PRODUCTS = {"EncoderModel.compute_similarity", "DenseModel.compute_similarity", "UniCoilModel.compute_similarity"}
MEAN_CROSS_ENTROPY = "EncoderModel.compute_loss"


def fused(peer: type) -> type:
    """A subclass of one of Tevatron's classes, of the same name, that computes the same loss and gradients fused.

    Args:
        peer: an ``EncoderModel`` (``DenseModel``, ``SpladeModel`` ...), or a ``SimpleContrastiveLoss`` or
            ``DistributedContrastiveLoss`` of its gradient-caching trainer.

    An encoder's training ``forward`` returns ``scores=None``, and over ranks this rank's representations where
    Tevatron's returns all ranks'; the loss is the same, factor W included. The parent computes inference, evaluation,
    and every encoder with its own ``compute_similarity`` (ColBERT's, say), ``compute_loss`` or ``cross_entropy``. Do
    not use it with ``DistilTevatronTrainer``, which trains on the scores.

    Raises:
        TypeError: the class is none of these.
    """
    if issubclass(peer, nn.Module) and hasattr(peer, "encode_query"):
        mixin: type = _FusedForward
    elif hasattr(peer, "gather_tensor"):
        mixin = DistributedCall
    elif not issubclass(peer, nn.Module) and "__call__" in vars(peer):
        mixin = SimpleCall
    else:
        raise TypeError(f"expected one of Tevatron's encoder or contrastive loss classes, got {peer.__name__}")
    return type(peer.__name__, (mixin, peer), {"__module__": peer.__module__, "__doc__": peer.__doc__})


class _FusedForward(nn.Module):
    """``EncoderModel.forward`` without scores; mixed in before the encoder's class."""

    def forward(self, query: dict[str, Tensor] | None = None, passage: dict[str, Tensor] | None = None) -> Any:
        """Batches of token ids to an ``EncoderOutput`` with ``loss``, ``q_reps`` [N, D] and ``p_reps`` [M, D]."""
        if not (self.training and query and passage and _is_fused(self)):
            return super().forward(query=query, passage=passage)
        output = super().forward(query=query)  # what it returns for one side alone: the representations
        query_reps, passage_reps = output.q_reps, super().forward(passage=passage).p_reps
        operands = as_operands(query_reps, passage_reps)
        scale = 1 / getattr(self, "temperature", 1.0)  # v1 has none
        if getattr(self, "negatives_x_device", False) or getattr(self, "is_ddp", False):
            loss = global_batch_loss(*operands, scale=scale) * dist.get_world_size()
        else:
            loss = contrastive_loss(*operands, scale=scale)
        return type(output)(loss=loss, q_reps=query_reps, p_reps=passage_reps)


def _is_fused(encoder: Any) -> bool:
    """Whether the encoder scores by dot product and its loss is the plain mean cross-entropy."""
    kind, cross_entropy = type(encoder), encoder.cross_entropy
    return (
        kind.compute_similarity.__qualname__ in DOT_PRODUCTS
        and kind.compute_loss.__qualname__ == MEAN_CROSS_ENTROPY
        and type(cross_entropy) is nn.CrossEntropyLoss
        and cross_entropy.weight is None
        and cross_entropy.reduction == "mean"
        and cross_entropy.label_smoothing == 0
    )
