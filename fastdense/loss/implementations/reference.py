"""The formula as it is written, in plain torch and in row chunks: the measure of every other implementation.

It runs on any device, and in float64 for float64 inputs.
"""

from typing import Any

import torch
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.problem import accumulation_dtype, row_weights


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot run there, or None if it can."""
    return None


def _contrastive(query: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.autocast(query.device.type, enabled=False):  # it would turn the products to half precision
        return _chunked(query, *arguments)


def _chunked(
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    scale: Tensor,
    passage_id: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mean: bool,
    query_grad: bool,
    passage_grad: bool,
    chunk_bytes: int,
) -> tuple[Tensor, ...]:
    result = operator.empty_results(query, passage, query_grad, passage_grad)
    dtype = accumulation_dtype(query)
    passage = passage.to(dtype)
    row_weight = row_weights(query, weight, mean)
    result.loss.zero_()
    result.scale_grad.zero_()
    result.passage_grad.zero_()
    # Six matrices of the chunk's size are alive at the peak.
    step = max(1, chunk_bytes // max(1, 6 * passage.shape[0] * dtype.itemsize))
    for start in range(0, query.shape[0], step):
        rows = slice(start, start + step)
        chunk = query[rows].to(dtype)
        similarity = chunk @ passage.T
        label = target[rows].unsqueeze(1)
        left_out = _left_out(label, passage_id)
        wanted = _wanted_distribution(similarity, label, left_out, label_smoothing)
        gradient = _gradient_of_scores(similarity, label, left_out, wanted, scale, row_weight[rows], result, rows)
        if query_grad:
            result.query_grad[rows] = gradient @ passage * scale
        if passage_grad:
            result.passage_grad.add_(gradient.T @ chunk * scale)
    return tuple(result)


def _gradient_of_scores(
    similarity: Tensor,
    label: Tensor,
    left_out: Tensor | None,
    wanted: Tensor,
    scale: Tensor,
    row_weight: Tensor,
    result: operator.ContrastiveResult,
    rows: slice,
) -> Tensor:
    """[rows, M]: d loss / d (scale * similarity); the chunk's other results go into ``result``."""
    # Relative to the target's: large scores would leave no digits for their differences.
    target_similarity = similarity.gather(1, label)
    excess = similarity - target_similarity
    scores = excess * scale
    if left_out is not None:
        scores.masked_fill_(left_out, -torch.inf)
    log_normalizer = scores.logsumexp(1)
    target_score = target_similarity.squeeze(1) * scale
    result.log_normalizer[rows] = log_normalizer + target_score
    result.target_score[rows] = target_score
    result.correct[rows] = scores.scatter(1, label, -torch.inf).amax(1) < 0

    loss = log_normalizer - (wanted * excess).sum(1) * scale
    result.loss.add_((loss * row_weight).sum())
    gradient = scores.softmax(1).sub_(wanted).mul_(row_weight.unsqueeze(1))
    result.scale_grad.add_((gradient * excess).sum())
    return gradient


def _left_out(label: Tensor, passage_id: Tensor | None) -> Tensor | None:
    """[rows, M]: the columns with the target's id, other than the target itself."""
    if passage_id is None:
        return None
    same = passage_id.unsqueeze(0) == passage_id[label]
    return same.scatter_(1, label, False)


def _wanted_distribution(like: Tensor, label: Tensor, left_out: Tensor | None, smoothing: float) -> Tensor:
    """[rows, M]: one at the target, smoothed over the columns that take part."""
    wanted = torch.zeros_like(like)
    if smoothing > 0:
        if left_out is None:
            wanted.fill_(smoothing / like.shape[1])
        else:
            taking_part = (~left_out).to(like.dtype)
            wanted = taking_part * (smoothing / taking_part.sum(1, keepdim=True))
    return wanted.scatter_add_(1, label, torch.full_like(label, 1.0 - smoothing, dtype=like.dtype))


_library = torch.library.Library("fastdense", "FRAGMENT")
operator.define(_library, "reference", _contrastive)
