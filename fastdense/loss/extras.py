"""What an implementation may leave to others: the other direction and the hardest negatives, by passes of their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdense.loss.operator import ContrastiveResult
from fastdense.loss.problem import accumulation_dtype, add_rows_, take_rows


def with_extras(one_direction: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The whole operator from a kernel that knows neither ``symmetric`` nor ``hardest`` (its arguments lack them).

    The other direction is that kernel once more, on N x N scores: 6 N M D + 6 N N D operations in all. The hardest
    negatives cost one more product, 2 N M D.
    """

    def contrastive(
        query: Tensor,
        passage: Tensor,
        target: Tensor,
        scale: Tensor,
        passage_id: Tensor | None,
        weight: Tensor | None,
        label_smoothing: float,
        symmetric: bool,
        mean: bool,
        query_grad: bool,
        passage_grad: bool,
        hardest: int,
        chunk_bytes: int,
    ) -> tuple[Tensor, ...]:
        how = (scale, weight, label_smoothing, mean, chunk_bytes)
        result = _one_direction(one_direction, query, passage, target, passage_id, query_grad, passage_grad, *how)
        if symmetric:
            # A query takes the id of its target, so another query with the same positive passage is no negative.
            query_id = None if passage_id is None else passage_id[target]
            every = torch.arange(query.shape[0], device=query.device)
            of_target = take_rows(passage, target)
            other = _one_direction(one_direction, of_target, query, every, query_id, passage_grad, query_grad, *how)
            result = _mean_of_directions(result, other, target, query_grad, passage_grad)
        index, score = hardest_negatives(query, passage, target, scale, passage_id, hardest, chunk_bytes)
        return tuple(result._replace(hardest_index=index, hardest_score=score))

    return contrastive


def _one_direction(
    kernel: Callable[..., tuple[Tensor, ...]],
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    passage_id: Tensor | None,
    query_grad: bool,
    passage_grad: bool,
    scale: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    mean: bool,
    chunk_bytes: int,
) -> ContrastiveResult:
    return ContrastiveResult(
        *kernel(
            query,
            passage,
            target,
            scale,
            passage_id,
            weight,
            label_smoothing,
            mean,
            query_grad,
            passage_grad,
            chunk_bytes,
        )
    )


def _mean_of_directions(
    result: ContrastiveResult, other: ContrastiveResult, target: Tensor, query_grad: bool, passage_grad: bool
) -> ContrastiveResult:
    """Add the other direction, whose queries were the target passages and whose passages were the queries."""
    if query_grad:
        result.query_grad.add_(other.passage_grad).div_(2)
    if passage_grad:
        result.passage_grad.div_(2)
        add_rows_(result.passage_grad, target, other.query_grad / 2)
    return result._replace(loss=(result.loss + other.loss) / 2, scale_grad=(result.scale_grad + other.scale_grad) / 2)


def hardest_negatives(
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    scale: Tensor,
    passage_id: Tensor | None,
    count: int,
    chunk_bytes: int,
) -> tuple[Tensor, Tensor]:
    """[N, count] columns and scaled scores of each row's hardest negatives, by a pass over chunks of rows."""
    dtype = accumulation_dtype(query)
    index = torch.empty(query.shape[0], count, dtype=torch.int64, device=query.device)
    score = torch.empty(query.shape[0], count, dtype=dtype, device=query.device)
    if count == 0:
        return index, score
    passage = passage.to(dtype)
    step = max(1, chunk_bytes // max(1, 3 * passage.shape[0] * dtype.itemsize))
    for start in range(0, query.shape[0], step):
        rows = slice(start, start + step)
        with torch.autocast(query.device.type, enabled=False):
            scores = query[rows].to(dtype) @ passage.T * scale
        label = target[rows].unsqueeze(1)
        if passage_id is not None:
            scores.masked_fill_(passage_id == passage_id[label], -torch.inf)
        index[rows], score[rows] = take_hardest(scores.scatter_(1, label, -torch.inf), count)
    return index, score


def take_hardest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row of ``scores`` [rows, M], where -inf takes no part: columns and scores.

    A row that has fewer ends with column -1 and score -inf.
    """
    score, index = scores.topk(min(count, scores.shape[1]), 1)
    missing = count - score.shape[1]
    score, index = F.pad(score, (0, missing), value=-torch.inf), F.pad(index, (0, missing), value=-1)
    return index.masked_fill_(score == -torch.inf, -1), score
