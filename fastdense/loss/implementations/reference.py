"""The formula as it is written, in plain torch and in row chunks: the measure of every other implementation.

It runs on any device, and in float64 for float64 inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.extras import take_hardest
from fastdense.loss.problem import accumulation_dtype, add_rows_, row_weights, take_rows


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
    symmetric: bool,
    mean: bool,
    query_grad: bool,
    passage_grad: bool,
    hardest: int,
    chunk_bytes: int,
) -> tuple[Tensor, ...]:
    result = operator.empty_results(query, passage, query_grad, passage_grad, hardest)
    dtype = accumulation_dtype(query)
    passage = passage.to(dtype)
    row_weight = row_weights(query, weight, mean)
    if symmetric:
        row_weight = row_weight / 2  # the mean of two directions
        chunk_bytes //= 2  # the other half is for scores to keep
    result.loss.zero_()
    result.scale_grad.zero_()
    result.passage_grad.zero_()
    direction = Direction(target, scale, passage_id, row_weight, label_smoothing)
    # Six matrices of the chunk's size are alive at the peak.
    step = max(1, chunk_bytes // max(1, 6 * passage.shape[0] * dtype.itemsize))
    chunks = [slice(start, start + step) for start in range(0, query.shape[0], step)]

    kept: dict[int, Tensor] = {}
    columns = None
    if symmetric:
        columns = _Columns(direction, torch.linalg.vecdot(query.to(dtype), take_rows(passage, target)))
        for rows in chunks:
            similarity = query[rows].to(dtype) @ passage.T
            columns.add(similarity, rows)
            if (len(kept) + 1) * similarity.nbytes <= chunk_bytes:
                kept[rows.start] = similarity
        columns.finish(result)

    for rows in chunks:
        chunk = query[rows].to(dtype)
        similarity = kept.pop(rows.start) if rows.start in kept else chunk @ passage.T
        gradient = gradient_of_rows(similarity, direction, rows, result)
        if columns is not None:
            # A column of the other direction is a query, and stands for the passage that is its target.
            add_rows_(gradient.T, target, columns.gradient(similarity, rows, result).T)
        if query_grad:
            result.query_grad[rows] = gradient @ passage * scale
        if passage_grad:
            result.passage_grad.add_(gradient.T @ chunk * scale)
    return tuple(result)


@dataclass(frozen=True)
class Direction:
    """What is asked of the rows of scores; ``row_weight`` [N] is what each row's loss is multiplied by."""

    target: Tensor
    scale: Tensor
    passage_id: Tensor | None
    row_weight: Tensor
    label_smoothing: float


def gradient_of_rows(
    similarity: Tensor,
    asked: Direction,
    rows: slice,
    result: operator.ContrastiveResult,
    filtered: Tensor | None = None,
) -> Tensor:
    """[rows, M]: d loss / d (scale * similarity); the chunk's other results go into ``result``.

    ``filtered`` [rows, M] are further columns to leave out of the softmax; ``correct`` and the hardest look at them.
    """
    label = asked.target[rows].unsqueeze(1)
    left_out = _left_out(label, asked.passage_id)
    row_weight = asked.row_weight[rows]
    # Relative to the target's: large scores would leave no digits for their differences.
    target_similarity = similarity.gather(1, label)
    target_score = target_similarity.squeeze(1) * asked.scale
    result.target_score[rows] = target_score
    excess = similarity - target_similarity
    scores = excess * asked.scale
    if left_out is not None:
        scores.masked_fill_(left_out, -torch.inf)
    negatives = scores.scatter(1, label, -torch.inf)
    result.correct[rows] = negatives.amax(1) < 0
    if result.hardest_index.shape[1] > 0:
        index, score = take_hardest(negatives, result.hardest_index.shape[1])
        result.hardest_index[rows], result.hardest_score[rows] = index, score + target_score.unsqueeze(1)

    if filtered is not None:
        scores.masked_fill_(filtered, -torch.inf)
        left_out = filtered if left_out is None else left_out | filtered
    wanted = _wanted_distribution(similarity, label, left_out, asked.label_smoothing)
    log_normalizer = scores.logsumexp(1)
    result.log_normalizer[rows] = log_normalizer + target_score
    loss = log_normalizer - (wanted * excess).sum(1) * asked.scale
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


class _Columns:
    """The other direction: each query's target passage picks the query out of all queries.

    Its softmax runs down a column, so it needs all chunks once for its sums before any chunk has a gradient.
    """

    def __init__(self, asked: Direction, target_similarity: Tensor) -> None:
        self.asked = asked
        self.target_similarity = target_similarity
        self.log_normalizer = torch.full_like(target_similarity, -torch.inf)  # relative to the target's score
        self.taking_part = torch.zeros_like(target_similarity)
        self.query_id = None if asked.passage_id is None else asked.passage_id[asked.target]

    def add(self, similarity: Tensor, rows: slice) -> None:
        """Take a chunk into the sums."""
        excess, left_out, _ = self._compare(similarity, rows)
        scores = (excess * self.asked.scale).masked_fill_(left_out, -torch.inf)
        self.log_normalizer = torch.logaddexp(self.log_normalizer, scores.logsumexp(0))
        self.taking_part += (~left_out).sum(0)

    def finish(self, result: operator.ContrastiveResult) -> None:
        """All chunks are in the sums."""
        result.loss.add_((self.log_normalizer * self.asked.row_weight).sum())

    def gradient(self, similarity: Tensor, rows: slice, result: operator.ContrastiveResult) -> Tensor:
        """[rows, N]: d loss / d (scale * similarity[:, target])."""
        excess, left_out, own = self._compare(similarity, rows)
        wanted = (~left_out).to(excess.dtype).mul_(self.asked.label_smoothing / self.taking_part)
        wanted += own * (1 - self.asked.label_smoothing)
        result.loss.sub_((wanted * excess * self.asked.row_weight).sum() * self.asked.scale)
        scores = (excess * self.asked.scale).masked_fill_(left_out, -torch.inf)
        gradient = (scores - self.log_normalizer).exp_().sub_(wanted).mul_(self.asked.row_weight)
        result.scale_grad.add_((gradient * excess).sum())
        return gradient

    def _compare(self, similarity: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, N] each: similarity less that of the target, what is left out, what is the target."""
        excess = similarity.index_select(1, self.asked.target) - self.target_similarity
        every = torch.arange(excess.shape[1], device=excess.device)
        own = every[rows].unsqueeze(1) == every
        if self.query_id is None:
            return excess, torch.zeros_like(own), own
        return excess, (self.query_id[rows].unsqueeze(1) == self.query_id) & ~own, own


_library = torch.library.Library("fastdense", "FRAGMENT")
operator.define(_library, "reference", _contrastive)
