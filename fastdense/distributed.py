"""Passages shared between ranks: everyone's passages in, the owners' gradients out.

Each rank scores its own queries against the passages of all ranks. With the passages' gradients summed at their
owners, each rank's mean loss times :attr:`PassageExchange.loss_weight`, and gradients averaged over ranks
(DistributedDataParallel), W ranks take the step of one process over the global batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class PassageExchange:
    """The passages of one step, as they lie on W ranks. Every rank makes one, and calls its methods in the same order.

    Args:
        query_rows: queries of this rank, N_r. Ranks may differ.
        passage_rows: passages of this rank, M_r. Ranks may differ.
        device: where the tensors of the exchange live; the default process group's backend must serve it.

    Attributes:
        passage_rows: M_r of every rank, in rank order.
        offset: index of this rank's first passage among all M = sum(passage_rows): add it to the targets.
        loss_weight: N_r * W / N, the factor of this rank's mean loss and of its gradients; 1.0 where all N_r agree.

    Raises:
        RuntimeError: there is no process group.
        ValueError: some rank has no queries or no passages (on all ranks alike: none is left waiting).
    """

    def __init__(self, query_rows: int, passage_rows: int, device: torch.device) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("sharing passages between ranks needs a process group: start with torchrun")
        self._rank, world = dist.get_rank(), dist.get_world_size()
        own = torch.tensor([[query_rows, passage_rows]], device=device)
        counts = _all_gather(own, world).tolist()
        for rank, (queries, passages) in enumerate(counts):
            if queries < 1 or passages < 1:
                raise ValueError(f"every rank needs queries and passages, rank {rank} has {queries} and {passages}")
        self.passage_rows = tuple(passages for _, passages in counts)
        self.offset = sum(self.passage_rows[: self._rank])
        self.loss_weight = query_rows * world / sum(queries for queries, _ in counts)

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows, [M, ...], from this rank's [M_r, ...] (representations, ids), in rank order, detached."""
        self._check_rows(rows, self.passage_rows[self._rank], "M_r")
        longest = max(self.passage_rows)
        padded = rows.detach().contiguous()
        if len(rows) < longest:
            padded = torch.cat([padded, padded.new_zeros(longest - len(rows), *rows.shape[1:])])
        gathered = _all_gather(padded, len(self.passage_rows))
        if min(self.passage_rows) == longest:
            return gathered
        chunks = zip(gathered.split(longest), self.passage_rows, strict=True)
        return torch.cat([chunk[:count] for chunk, count in chunks])

    def return_gradients(self, gradients: Tensor) -> Tensor:
        """Sum over ranks of the gradients of this rank's passages, [M_r, D], from everyone's gradients of all, [M, D].

        A reduce-scatter, made of an all-to-all and a sum in rank order: the same bytes travel, rows may be uneven on
        every backend, and the result does not depend on timing.
        """
        self._check_rows(gradients, sum(self.passage_rows), "M")
        own, world = self.passage_rows[self._rank], len(self.passage_rows)
        received = gradients.new_empty(world * own, *gradients.shape[1:])
        dist.all_to_all_single(received, gradients.detach().contiguous(), [own] * world, list(self.passage_rows))
        return received.unflatten(0, (world, own)).sum(dim=0)

    def _check_rows(self, tensor: Tensor, expected: int, name: str) -> None:
        if len(tensor) != expected:
            raise ValueError(f"expected {name} = {expected} rows, got {len(tensor)}")


def _all_gather(tensor: Tensor, world: int) -> Tensor:
    """[world * n, ...] from every rank's [n, ...]."""
    gathered = tensor.new_empty(world * len(tensor), *tensor.shape[1:])
    # torch 2.13 deprecates the older name.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(gathered, tensor)
    return gathered
