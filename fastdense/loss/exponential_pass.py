"""One pass over row chunks, on a GPU: exponentials instead of scores are stored, and two products made with them.

The offset is known beforehand (offsets.py), and each row is summed in float32. The gradients are products with the
exponentials, corrected in float32 for the target, which those leave out: softmax - 1 would cancel there. Nothing in it
waits for the device: what depends on values is decided there.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.exponentials import Chunk, Exponentials, Kernels, aligned
from fastdense.loss.offsets import PEAK, row_offsets
from fastdense.loss.operator import ContrastiveResult
from fastdense.loss.problem import add_rows_, row_weights


@dataclass(frozen=True)
class Shared:
    """What all row chunks share."""

    kernels: Kernels
    query: Tensor
    passage: Tensor
    aligned_query: Tensor
    aligned_passage: Tensor
    target: Tensor
    """In range; ``in_range`` says which rows' targets were so. The others' results are nan."""
    in_range: Tensor
    scale: Tensor
    label: Tensor | None
    row_weight: Tensor
    largest_weight: Tensor
    label_smoothing: float
    columns: "ColumnTotals | None"
    """Only for label smoothing."""
    longest_passage: Tensor
    """max |p|"""
    lift: Tensor
    """What queries are multiplied by in the product for the passages: float16 would lose small ones."""


class ColumnTotals(NamedTuple):
    """Sums of passages, float32: a sum of scores is a product with one of them."""

    all: Tensor
    """[D]"""
    of_label: Tensor | None
    """[M, D]: of those with the label 0, 1, ..."""
    count_of_label: Tensor | None
    """[M]"""


class Rows(NamedTuple):
    """Results of a chunk of rows, [rows] each, before they are weighted."""

    loss: Tensor
    scale_grad: Tensor
    log_normalizer: Tensor
    target_score: Tensor
    correct: Tensor
    factor: Tensor
    """What turns a row of stored exponentials into the others' gradient of the score."""
    pull: Tensor
    """Minus the target's gradient of the score."""


def contrastive(
    kernels: Kernels,
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
    """The operator of fastdense/loss/operator.py, by an implementation's kernels."""
    result = operator.empty_results(query, passage, query_grad, passage_grad)
    result.passage_grad.zero_()
    if query.shape[0] == 0:
        return tuple(result._replace(loss=result.loss.zero_(), scale_grad=result.scale_grad.zero_()))
    row_weight = row_weights(query, weight, mean)
    shared = _shared(kernels, query, passage, target, scale, passage_id, row_weight, label_smoothing)
    row_loss, row_scale_grad = torch.empty_like(row_weight), torch.empty_like(row_weight)
    step = chunk_rows(kernels, query.shape[0], passage.shape[0], query.shape[1], query.dtype, chunk_bytes)
    for start in range(0, query.shape[0], step):
        rows = slice(start, start + step)
        done = _run_chunk(shared, rows, result, query_grad, passage_grad)
        row_loss[rows] = done.loss
        row_scale_grad[rows] = done.scale_grad
        result.log_normalizer[rows] = done.log_normalizer
        result.target_score[rows] = done.target_score
        result.correct[rows] = done.correct
    result.passage_grad.mul_(scale * shared.largest_weight / shared.lift)
    return tuple(
        result._replace(loss=(row_loss * row_weight).sum(), scale_grad=(row_scale_grad * row_weight).sum() / scale)
    )


def chunk_rows(kernels: Kernels, rows: int, columns: int, width: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    """Rows of a chunk: what the budget holds, in chunks of nearly equal size, of whole tiles where they are that large.

    The budget is for everything that grows with the chunk.
    """
    partial_results = 6 * 4 * (columns // kernels.TILE_COLUMNS + 1)
    of_width = width * (3 * 4 + dtype.itemsize)  # targets' passages, a product, its correction; scaled queries
    fit = max(1, chunk_bytes // (columns * dtype.itemsize + partial_results + of_width))
    even = -(-rows // -(-rows // fit))
    whole_tiles = -(-even // kernels.TILE_ROWS) * kernels.TILE_ROWS
    return whole_tiles if whole_tiles <= fit else even


def _shared(
    kernels: Kernels,
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    scale: Tensor,
    passage_id: Tensor | None,
    row_weight: Tensor,
    label_smoothing: float,
) -> Shared:
    in_range = (target >= 0) & (target < passage.shape[0])
    label = None if passage_id is None else _labels(passage_id)
    aligned_query = aligned(query)
    lift = torch.ones_like(scale)
    if query.dtype == torch.float16:
        # Factors are at most 1 / PEAK: the largest entry becomes at most 2 ** 14.
        lift = 2.0**14 * PEAK / aligned_query.abs().amax().float().clamp_min(2.0**-24)
    return Shared(
        kernels=kernels,
        query=query,
        passage=passage,
        aligned_query=aligned_query,
        aligned_passage=aligned(passage),
        target=torch.where(in_range, target, 0).contiguous(),
        in_range=in_range,
        scale=scale,
        label=label,
        row_weight=row_weight,
        largest_weight=row_weight.amax().clamp_min(torch.finfo(torch.float32).tiny),
        label_smoothing=label_smoothing,
        columns=_column_totals(passage, label) if label_smoothing > 0 else None,
        longest_passage=torch.linalg.vector_norm(passage, dim=1, dtype=torch.float32).amax(),
        lift=lift,
    )


def _labels(identity: Tensor) -> Tensor:
    """[M] int32, equal where the 64-bit identities are: the kernels have few registers, and compare them often."""
    identity, order = identity.sort(stable=True)
    new = F.pad(identity[1:] != identity[:-1], (1, 0))
    return torch.empty_like(order, dtype=torch.int32).scatter_(0, order, new.cumsum(0).int())


def _column_totals(passage: Tensor, label: Tensor | None) -> ColumnTotals:
    total = passage.sum(0, dtype=torch.float32)
    if label is None:
        return ColumnTotals(total, None, None)
    of_label = torch.zeros(passage.shape, dtype=torch.float32, device=passage.device)
    count_of_label = torch.zeros_like(label, dtype=torch.float32)
    add_rows_(of_label, label.long(), passage.float())
    add_rows_(count_of_label, label.long(), torch.ones_like(count_of_label))
    return ColumnTotals(total, of_label, count_of_label)


def _excess(shared: Shared, rows: slice, of_target: Tensor) -> tuple[Tensor, Tensor]:
    """For label smoothing, [rows]: the sum of the others' (score - target_score), and how many others take part."""
    columns, query = shared.columns, shared.query[rows].float()
    assert columns is not None
    others = query.new_full((len(query),), shared.passage.shape[0] - 1)
    left_out = of_target
    if shared.label is not None and columns.of_label is not None and columns.count_of_label is not None:
        label = shared.label[shared.target[rows]]
        left_out = columns.of_label[label]
        others = shared.passage.shape[0] - columns.count_of_label[label]
    total = columns.all - left_out - others.unsqueeze(1) * of_target
    return torch.linalg.vecdot(query, total) * shared.scale, others


def _run_chunk(shared: Shared, rows: slice, result: ContrastiveResult, query_grad: bool, passage_grad: bool) -> Rows:
    """Compute the results of some rows; their parts of the gradients go into ``result``."""
    query, target = shared.query[rows], shared.target[rows]
    of_target = shared.passage[target].float()
    always_exact = query.dtype != torch.bfloat16
    guess = row_offsets(query, of_target, shared.scale, shared.longest_passage, always_exact)
    chunk = Chunk(
        shared.aligned_query[rows],
        shared.aligned_passage,
        target.int(),
        shared.label,
        shared.scale,
    )
    scored = shared.kernels.exponentials(chunk, guess)
    scored = scored._replace(target_score=scored.target_score.where(shared.in_range[rows], torch.nan))
    of_smoothing = None if shared.columns is None else _excess(shared, rows, of_target)
    done = _finish(shared, scored, chunk, of_smoothing)
    if query_grad:
        outer = (shared.row_weight[rows] * shared.scale).unsqueeze(1)
        gradient = _product(scored.stored, shared.passage).mul_(done.factor.unsqueeze(1) * outer)
        result.query_grad[rows] = gradient.sub_(of_target.mul_(done.pull.unsqueeze(1) * outer))
    if passage_grad:
        outer = (shared.row_weight[rows] / shared.largest_weight * shared.lift).unsqueeze(1)
        scaled = query * (done.factor.unsqueeze(1) * outer)
        _add_product(result.passage_grad, scored.stored.T, scaled.to(query.dtype))
        add_rows_(result.passage_grad, target, query * -(done.pull.unsqueeze(1) * outer))
    return done


def _finish(shared: Shared, scored: Exponentials, chunk: Chunk, of_smoothing: tuple[Tensor, Tensor] | None) -> Rows:
    """Losses and by-products, and how to get the gradient from what is stored, which smoothing changes."""
    # The odds of the others against the target, by their logarithm: neither sum needs to be in range of the other.
    log_odds = torch.log(scored.total) + (scored.offset - scored.target_score)
    share = torch.sigmoid(log_odds)  # of the others in the row's probability
    # Relative to the sum as it is stored: the row's gradient adds up to zero, whatever was rounded. Were it not so, a
    # part that all passages share would not cancel.
    factor = (share / scored.stored_total).masked_fill(scored.stored_total == 0, 0.0)
    loss = log_odds.clamp_min(0) + torch.log1p(torch.exp(-log_odds.abs()))
    log_normalizer = scored.target_score + loss
    scale_grad = (share * scored.moment / scored.total).masked_fill(scored.total == 0, 0.0)
    pull = share
    if of_smoothing is not None:
        excess, others = of_smoothing
        smoothing = shared.label_smoothing
        smoothed = smoothing / (others + 1)
        wanted = smoothed * excess
        loss, scale_grad = loss - wanted, scale_grad - wanted
        pull = share - smoothing + smoothed
        shared.kernels.subtract_smoothing(scored.stored, chunk, factor * PEAK, smoothed * PEAK)
        factor = torch.full_like(factor, 1 / PEAK)
    correct = (scored.target_score > scored.largest) & ~log_odds.isnan()
    return Rows(loss, scale_grad, log_normalizer, scored.target_score, correct, factor, pull)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, accumulated and returned in float32."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """``to += a @ b``, accumulated in float32 (``to``'s dtype)."""
    if a.dtype == torch.float32 or not a.is_cuda:
        to.addmm_(a.float(), b.float())
    elif _adds_to_float32(a.device, a.dtype):
        torch.ops.aten.addmm.dtype_out(to, a, b, torch.float32, out=to)
    else:
        to.add_(_product(a, b))


@cache
def _adds_to_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a product of half precision to float32 (earlier ones want one dtype)."""
    factor, to = torch.zeros(16, 16, device=device, dtype=dtype), torch.zeros(16, 16, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(to, factor, factor, torch.float32, out=to)
    except RuntimeError:
        return False
    return True
