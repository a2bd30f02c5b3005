"""Losses of several prefixes of the representations (Matryoshka) and false-negative filters, in one walk.

The scores of a prefix are those of the shorter one before it plus a product over the dimensions between them, and a
dimension's gradient sums over the prefixes that hold it before it is multiplied: whatever the number of prefixes, the
products cost the 6 N M D operations of the longest alone, where a loss for each would cost 6 N M times the sum of all.
Plain torch in row chunks, on any device: no [N, M] matrix is ever in memory.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.loss.implementations.reference import Direction, gradient_of_rows
from fastdense.loss.operator import ContrastiveResult
from fastdense.loss.problem import Problem, accumulation_dtype, make_problem, row_weights

_BY_PRODUCTS = ("log_normalizer", "target_score", "correct")
_SHORTEST = 1e-12  # a shorter vector is divided by this, as F.normalize does


def prefix_loss_and_grad(
    query: Tensor,
    passage: Tensor,
    target: Tensor | None = None,
    *,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
    renormalize: bool = False,
    false_negatives: FalseNegativeFilter | None = None,
    guide: tuple[Tensor, Tensor] | None = None,
    scale: float | Tensor = 1.0,
    passage_id: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
) -> ContrastiveResult:
    """The weighted sum over ``dims`` of the contrastive losses of the representations' prefixes, with its gradients.

    Unfused (Matryoshka Representation Learning, 2022; sentence-transformers' MatryoshkaLoss)::

        cut = (lambda x: F.normalize(x[:, :d], dim=1)) if renormalize else (lambda x: x[:, :d])
        loss = sum(w * contrastive_loss(cut(query), cut(passage), target, ...) for d, w in zip(dims, dim_weights))

    With ``false_negatives`` the columns that it names leave the softmax of a row, prefix by prefix by the prefix's own
    similarities, or by those of ``guide`` for all prefixes (GISTEmbed, 2024; 2 N M D_guide operations more).

    Args:
        query, passage, target, scale, passage_id, label_smoothing, chunk_bytes: as in
            :func:`fastdense.contrastive_loss`.
        dims: lengths of the prefixes, from 1 to D, none twice. Default: D alone.
        dim_weights: one number >= 0 for each of ``dims``. Default: 1 each.
        renormalize: prefixes are scaled to length 1.
        guide: representations [N, D_guide] and [M, D_guide] of another model, of one floating dtype, whose dot
            products ``false_negatives`` looks at. They get no gradient.

    Returns:
        A :class:`ContrastiveResult`, outside autograd. By-products are those of the longest prefix; ``correct`` counts
        filtered columns, too.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        problem = make_problem(
            query, passage, target, scale, passage_id, None, label_smoothing, False, "mean", chunk_bytes
        )
        prefixes = _make_prefixes(problem, dims, dim_weights, renormalize)
        _check_guide(problem, false_negatives, guide)
        return _walk(problem, prefixes, false_negatives, guide)


def check_dims(dims: Sequence[int], weights: Sequence[float] | None, width: int | None = None) -> None:
    """Raise ValueError unless ``dims`` are positive and differ, and ``weights`` are one for each, some above zero.

    ``width``, where it is known, is the most that one may be.
    """
    if not dims or any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(f"the dimensions must be positive whole numbers, none twice, got {[*dims]}")
    if width is not None and max(dims) > width:
        raise ValueError(f"a prefix of {max(dims)} dimensions is longer than the representations, which have {width}")
    if weights is None:
        return
    if len(weights) != len(dims):
        raise ValueError(f"there must be one weight for each dimension, got {len(weights)} for {len(dims)}")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights) or sum(weights) == 0:
        raise ValueError(f"the weights must be finite, not negative and not all zero, got {[*weights]}")


class _Prefix(NamedTuple):
    """One prefix: the dimensions that it adds to the one before, its weight, and 1 / length of its vectors."""

    added: slice
    weight: float
    inverse: tuple[Tensor, Tensor] | None
    """[N] and [M]; None where nothing is renormalized"""


def _make_prefixes(
    problem: Problem, dims: Sequence[int] | None, weights: Sequence[float] | None, renormalize: bool
) -> list[_Prefix]:
    width = problem.query.shape[1]
    dims = [width] if dims is None else dims
    check_dims(dims, weights, width)
    prefixes, start = [], 0
    for dim, weight in sorted(zip(dims, weights or [1.0] * len(dims), strict=True)):
        inverse = None
        if renormalize:
            inverse = _inverse_lengths(problem.query[:, :dim]), _inverse_lengths(problem.passage[:, :dim])
        prefixes.append(_Prefix(slice(start, dim), weight, inverse))
        start = dim
    return prefixes


def _inverse_lengths(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=1, dtype=accumulation_dtype(vectors))
    return lengths.clamp_min(_SHORTEST).reciprocal()


def _check_guide(
    problem: Problem, false_negatives: FalseNegativeFilter | None, guide: tuple[Tensor, Tensor] | None
) -> None:
    if guide is None:
        return
    if false_negatives is None:
        raise ValueError("guide is for false_negatives, which is not given")
    rows = (problem.query.shape[0], problem.passage.shape[0])
    if tuple(len(side) for side in guide) != rows or guide[0].shape[1:] != guide[1].shape[1:]:
        shapes = " and ".join(str([*side.shape]) for side in guide)
        raise ValueError(f"guide must be [{rows[0]}, D_guide] and [{rows[1]}, D_guide], got {shapes}")


def _walk(
    problem: Problem,
    prefixes: list[_Prefix],
    false_negatives: FalseNegativeFilter | None,
    guide: tuple[Tensor, Tensor] | None,
) -> ContrastiveResult:
    dtype = accumulation_dtype(problem.query)
    passage = problem.passage.to(dtype)
    result = operator.empty_results(problem.query, passage, True, True)
    for tensor in (result.loss, result.scale_grad, result.query_grad, result.passage_grad):
        tensor.zero_()
    # By-products of shorter prefixes, which nobody asks for; the sums are shared.
    shorter = result._replace(**{name: torch.empty_like(getattr(result, name)) for name in _BY_PRODUCTS})
    even = row_weights(problem.query, None, problem.mean)
    through_lengths = _ThroughLengths(problem, len(prefixes))
    live = 6 + len(prefixes)  # matrices of the chunk's size at the peak
    step = max(1, problem.chunk_bytes // max(1, live * len(passage) * dtype.itemsize))
    for start in range(0, len(problem.query), step):
        rows = slice(start, start + step)
        label = problem.target[rows].unsqueeze(1)
        query = problem.query[rows].to(dtype)
        filtered = None
        if false_negatives is not None and guide is not None:
            filtered = false_negatives.left_out(guide[0][rows].to(dtype) @ guide[1].to(dtype).T, label)
        similarities = _similarities(query, passage, prefixes, rows)
        total: Tensor | None = None  # of the gradients of all prefixes that hold a dimension
        for index in reversed(range(len(prefixes))):
            prefix, similarity = prefixes[index], similarities.pop()
            if false_negatives is not None and guide is None:
                filtered = false_negatives.left_out(similarity, label)
            asked = Direction(
                problem.target, problem.scale, problem.passage_id, even * prefix.weight, problem.label_smoothing
            )
            to = result if total is None else shorter
            gradient = gradient_of_rows(similarity, asked, rows, to, filtered).mul_(problem.scale)
            if prefix.inverse is not None:
                through_lengths.add(index, gradient, similarity, rows)
                gradient = _divided(gradient, prefix.inverse, rows)
            total = gradient if total is None else total.add_(gradient)
            result.query_grad[rows, prefix.added] = total @ passage[:, prefix.added]
            result.passage_grad[:, prefix.added].addmm_(total.T, query[:, prefix.added])
    through_lengths.subtract(result, prefixes)
    return result


def _similarities(query: Tensor, passage: Tensor, prefixes: list[_Prefix], rows: slice) -> list[Tensor]:
    """[rows, M] for each prefix, each from the one before it."""
    found: list[Tensor] = []
    running: Tensor | None = None
    for prefix in prefixes:
        added = query[:, prefix.added], passage[:, prefix.added].T
        running = added[0] @ added[1] if running is None else torch.addmm(running, *added)
        found.append(running if prefix.inverse is None else _divided(running.clone(), prefix.inverse, rows))
    return found


def _divided(products: Tensor, inverse: tuple[Tensor, Tensor], rows: slice) -> Tensor:
    """``products`` [rows, M], in place, of vectors that are scaled to length 1."""
    return products.mul_(inverse[0][rows].unsqueeze(1)).mul_(inverse[1])


class _ThroughLengths:
    """What a gradient loses because the vectors' lengths are divided out.

    With s = q . p / (|q| |p|) it is ds/dq = p / (|q| |p|) - s q / |q|^2: of the second part only sums of gradient times
    s along rows and columns are needed.
    """

    def __init__(self, problem: Problem, prefixes: int) -> None:
        self._problem = problem
        dtype = accumulation_dtype(problem.query)
        self._query = problem.query.new_zeros(prefixes, len(problem.query), dtype=dtype)
        self._passage = problem.query.new_zeros(prefixes, len(problem.passage), dtype=dtype)

    def add(self, index: int, gradient: Tensor, similarity: Tensor, rows: slice) -> None:
        """Take a chunk's gradient [rows, M] of the similarities of a prefix into the sums."""
        product = gradient * similarity
        self._query[index, rows] = product.sum(1)
        self._passage[index] += product.sum(0)

    def subtract(self, result: ContrastiveResult, prefixes: list[_Prefix]) -> None:
        """Take the second part out of both gradients."""
        for index, prefix in enumerate(prefixes):
            if prefix.inverse is None:
                continue
            sides = (
                (result.query_grad, self._problem.query, self._query[index], prefix.inverse[0]),
                (result.passage_grad, self._problem.passage, self._passage[index], prefix.inverse[1]),
            )
            for gradient, vectors, share, inverse in sides:
                held = slice(0, prefix.added.stop)
                gradient[:, held] -= vectors[:, held] * (share * inverse.square()).unsqueeze(1)
