"""A teacher's scores of each query's own passages as what the model's scores are to be like."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdense.loss import rules
from fastdense.loss.prefix_walk import check_dims
from fastdense.loss.problem import accumulation_dtype, take_rows


class DistillationResult(NamedTuple):
    """Outside autograd, in float32 (float64 for float64 inputs)."""

    loss: Tensor
    """[]"""
    query_grad: Tensor
    """[N, D]"""
    passage_grad: Tensor
    """[M, D]"""


def distillation_loss_and_grad(
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    teacher_score: Tensor,
    *,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
    renormalize: bool = False,
    scale: float = 1.0,
    temperature: float = 1.0,
) -> DistillationResult:
    """The Kullback-Leibler divergence of the model's softmax over each query's own passages from the teacher's.

    Query i's own passages are the rows ``target[i]``, ``target[i] + 1``, ... of ``passage``, as many as
    ``teacher_score[i]`` has finite numbers. Unfused::

        own = passage[target[i] : target[i] + len(teacher)]          # teacher: teacher_score[i] without its -inf
        wanted = softmax(teacher / temperature)
        row = (wanted * (log(wanted) - log_softmax(scale * own @ query[i]))).sum()
        loss = mean of all rows

    It is the loss of sentence-transformers' DistillKLDivLoss (without its factor temperature^2, and with a temperature
    for the teacher alone). No other passages of the batch take part, so ranks need not share any: 6 N K D operations.

    Args:
        query, passage: [N, D] and [M, D], of one floating dtype and device.
        target: [N] integers, the row of each query's first passage.
        teacher_score: [N, K], -inf behind the scores of a query that has fewer than K passages, of which it has one
            or more. Targets and scores are checked on the CPU only: elsewhere that would wait for the device.
        dims, dim_weights, renormalize: the sum over prefixes, as in
            :func:`fastdense.loss.prefix_walk.prefix_loss_and_grad`.
        scale: factor on the dot products, 1 / temperature of the model.
        temperature: the teacher's scores are divided by it.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    _check(query, passage, target, teacher_score, temperature)
    rules.check_scale_value(scale)
    dims = [query.shape[1]] if dims is None else dims
    check_dims(dims, dim_weights, query.shape[1])
    dtype = accumulation_dtype(query)
    leaves = [side.detach().to(dtype).requires_grad_() for side in (query, passage)]
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        loss = torch.zeros((), dtype=dtype, device=query.device)
        for dim, weight in zip(dims, dim_weights or [1.0] * len(dims), strict=True):
            cut = [side[:, :dim] for side in leaves]
            q, p = (F.normalize(side, dim=1) for side in cut) if renormalize else cut
            loss = loss + weight * _divergence(q, p, target, teacher_score.to(dtype) / temperature, scale)
        query_grad, passage_grad = torch.autograd.grad(loss, leaves)
    return DistillationResult(loss.detach(), query_grad, passage_grad)


def _divergence(query: Tensor, passage: Tensor, target: Tensor, teacher: Tensor, scale: float) -> Tensor:
    absent = teacher == -torch.inf
    rows = (target.unsqueeze(1) + torch.arange(teacher.shape[1], device=target.device)).masked_fill(absent, 0)
    own = take_rows(passage, rows.flatten()).unflatten(0, rows.shape)
    student = torch.bmm(own, query.unsqueeze(2)).squeeze(2) * scale
    wanted = teacher.log_softmax(1)
    excess = wanted - student.masked_fill(absent, -torch.inf).log_softmax(1)
    # Of an absent passage both logarithms are infinite, and their difference is not a number.
    return (wanted.exp() * excess.masked_fill(absent, 0.0)).sum() / max(1, len(query))


def _check(query: Tensor, passage: Tensor, target: Tensor, teacher_score: Tensor, temperature: float) -> None:
    rows = len(query)
    if query.ndim != 2 or passage.ndim != 2 or query.shape[1] != passage.shape[1]:
        raise ValueError(f"query and passage must be [N, D] and [M, D], got {[*query.shape]} and {[*passage.shape]}")
    rules.check_pair(query.shape, passage.shape, str(query.dtype), str(passage.dtype))
    if target.shape != (rows,):
        raise ValueError(f"target must be [{rows}], a row of passage for each query, got {[*target.shape]}")
    rules.check_integer("target", not (target.is_floating_point() or target.dtype == torch.bool), str(target.dtype))
    if teacher_score.ndim != 2 or len(teacher_score) != rows or not teacher_score.shape[1]:
        raise ValueError(f"teacher_score must be [{rows}, K], got {[*teacher_score.shape]}")
    if rows and target.is_cpu:
        _check_own_passages(target, (teacher_score != -torch.inf).sum(1).cpu(), len(passage))
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and greater than 0, got {temperature}")


def _check_own_passages(target: Tensor, own: Tensor, passages: int) -> None:
    if int(own.min()) == 0:
        raise ValueError(f"teacher_score must have a finite score in every row, got none in row {int(own.argmin())}")
    rules.check_target_range(int(target.min()), int((target + own).max()) - 1, passages)
