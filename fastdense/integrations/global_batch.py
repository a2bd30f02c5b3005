"""The loss of the global batch, in which each rank computes its own rows only."""

import torch
import torch.distributed as dist
from torch import Tensor

from fastdense.distributed import PassageExchange
from fastdense.grad_cache import attach_gradients
from fastdense.loss import contrastive_loss_and_grad


def global_batch_loss(
    query: Tensor, passage: Tensor, target: Tensor | None = None, *, scale: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """All ranks' queries against all ranks' passages.

    Equal to gathering both, putting this rank's own tensors back into their places and scoring everything on every
    rank, for 1 / W of the work: a rank's rows need no other rank's queries, and its passages' gradients come back from
    the others.

    Args:
        query: [N, D], this rank's.
        passage: [M, D], this rank's.
        target: [W * N] integers, for the queries of all ranks (N of each) the index among all ranks' passages.
            Default: each query's passage first in its group of M // N, on its own rank.
        scale: factor on the dot products.
        reduction: "mean" or "sum" over the queries of all ranks.

    Returns:
        The loss, shape [], float32, the same on every rank. Its gradients are those of this one number, so the mean
        over W ranks that DistributedDataParallel takes makes 1 / W of a single process's.

    Raises:
        RuntimeError: there is no process group.
        ValueError: ``target`` does not fit, or M is no multiple of N and there is no ``target``.
    """
    exchange = PassageExchange(len(query), len(passage), query.device)
    own_target = _own_target(query, passage, target, exchange.offset)
    result = contrastive_loss_and_grad(query, exchange.gather(passage), own_target, scale=scale, reduction=reduction)
    share = exchange.loss_weight / dist.get_world_size() if reduction == "mean" else 1.0
    loss = result.loss * share
    dist.all_reduce(loss)
    passage_grad = exchange.return_gradients(result.passage_grad) * share
    return attach_gradients(loss, (query, passage), (result.query_grad * share, passage_grad))


def _own_target(query: Tensor, passage: Tensor, target: Tensor | None, offset: int) -> Tensor:
    rows = len(query)
    if target is None:
        if len(passage) % rows:
            raise ValueError(
                f"without target, the number of passages must be a multiple of the number of queries, got "
                f"{len(passage)} passages for {rows} queries: pass target"
            )
        return torch.arange(rows, device=query.device) * (len(passage) // rows) + offset
    world = dist.get_world_size()
    if target.shape != (world * rows,):
        raise ValueError(
            f"target must have one value for each query of all {world} ranks, shape [{world * rows}], "
            f"got {list(target.shape)}"
        )
    return target[dist.get_rank() * rows :][:rows]
