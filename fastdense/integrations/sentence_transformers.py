"""sentence-transformers' in-batch negatives losses, without the score matrix.

    from fastdense.integrations.sentence_transformers import FusedMultipleNegativesRankingLoss

Same constructors, loss and gradients as the classes they extend, in :class:`MatryoshkaLoss`, under
``SentenceTransformerTrainer`` and with a learnable scale too; tested with sentence-transformers 6.2 and 5.1.

Fused are cosine and dot product similarity (``util.cos_sim``, ``util.dot_score``), any number of negatives, directions
``("query_to_doc",)``, and ``("query_to_doc", "doc_to_query")`` per direction, each with or without
``gather_across_devices``. The parent class computes everything else: other similarity functions, joint partitions of
several directions, hardness weighting, sparse representations.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.util import all_gather_with_grad, cos_sim, dot_score
from torch import Tensor

from fastdense.loss import contrastive_loss

try:
    from sentence_transformers.sentence_transformer import losses
except ModuleNotFoundError:  # before version 6
    from sentence_transformers import losses  # type: ignore[attr-defined, no-redef]

__all__ = ["CachedFusedMultipleNegativesRankingLoss", "FusedMultipleNegativesRankingLoss"]

FORWARD = {"query_to_doc"}
BOTH = {"query_to_doc", "doc_to_query"}


class FusedMultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    """``MultipleNegativesRankingLoss``, fused; the module's text says what goes to the parent.

    The loss and its sums are float32 whatever the dtype of the embeddings (float64 for float64). Where the parent's
    product is in lower precision, as under autocast, what it multiplies is rounded alike; the scores are not.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Columns [B, D] (anchors, positives, negatives ...) to the loss, shape []; ``labels`` are not used."""
        if not _is_fused(self, embeddings):
            return super().compute_loss_from_embeddings(embeddings, labels)
        return _fused_loss(self, embeddings)


class CachedFusedMultipleNegativesRankingLoss(losses.CachedMultipleNegativesRankingLoss):
    """``CachedMultipleNegativesRankingLoss``, fused; the module's text says what goes to the parent.

    ``mini_batch_size`` and ``mini_batch_num_tokens`` limit the encoder's mini-batches, as in the parent; the loss walks
    the scores in chunks of its own (see ``chunk_bytes`` of :func:`fastdense.contrastive_loss`) and gathers once a step.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Mini-batches [b, D] of each column to the loss, shape []; ``with_backward`` leaves gradients in them."""
        if not _is_fused(self, [mini_batches[0] for mini_batches in reps]):
            return super().calculate_loss(reps, with_backward=with_backward)  # version 5 knows no labels
        loss = _fused_loss(self, [torch.cat(mini_batches) for mini_batches in reps])
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _is_fused(loss: Any, columns: list[Tensor]) -> bool:
    """Whether the fused loss covers the options of a parent's object, some of which older versions lack."""
    directions = _directions(loss)
    hardness_strength = getattr(loss, "hardness_strength", 0.0) if getattr(loss, "hardness_mode", None) else 0.0
    return (
        (directions == FORWARD or (directions == BOTH and loss.partition_mode == "per_direction"))
        and hardness_strength == 0.0
        and loss.similarity_fct in (cos_sim, dot_score)
        and (not isinstance(loss.scale, Tensor) or loss.scale.numel() == 1)
        and len(columns) >= 2
        and all(column.dim() == 2 and not column.is_sparse for column in columns)
    )


def _directions(loss: Any) -> set[str]:
    return set(getattr(loss, "directions", FORWARD))


def _fused_loss(loss: Any, columns: list[Tensor]) -> Tensor:
    query, document = _operands(loss.similarity_fct, columns[0], torch.cat(columns[1:]))
    scale = loss.scale.to(query.device) if isinstance(loss.scale, Tensor) else float(loss.scale)
    symmetric = _directions(loss) == BOTH
    rows = torch.arange(len(query), device=query.device)
    if not loss.gather_across_devices:
        return contrastive_loss(query, document, rows, scale=scale, symmetric=symmetric)
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    own_first = rank * len(document)
    value = contrastive_loss(query, all_gather_with_grad(document), rows + own_first, scale=scale)
    if symmetric:
        positive = document[: len(query)]
        other = contrastive_loss(positive, all_gather_with_grad(query), rows + rank * len(query), scale=scale)
        value = (value + other) / 2
    return value


def _operands(similarity: Any, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """What the similarity function multiplies; its dtype depends on autocast and on the library's version."""
    with torch.no_grad():
        dtype = similarity(query[:1], document[:1]).dtype
    if similarity is cos_sim:
        wide = torch.promote_types(query.dtype, torch.float32)
        query, document = F.normalize(query.to(wide), dim=-1), F.normalize(document.to(wide), dim=-1)
    return query.to(dtype), document.to(dtype)
