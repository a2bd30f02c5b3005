"""The contrastive loss in plain XLA: one pass over chunks of rows, for CPUs and GPUs.

A whole row of scores gives its log-sum-exp at once, and with it the row's gradient: three products, 6 N M D
operations, leave the loss and both gradients, and no [N, M] matrix is ever in memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastdense.jax.loss_problem import (
    NO_PASSAGE,
    NOTHING,
    ContrastiveResult,
    Problem,
    Rows,
    Settings,
    largest_weight,
    row_terms,
)

BYTES_PER_SCORE = 16  # of a chunk's scores, exponentials and gradient that are alive at once


def contrastive(settings: Settings, problem: Problem, gradients: bool) -> ContrastiveResult:
    """Loss, gradients and by-products; without ``gradients`` those of query and passage are empty."""
    rows, columns = problem.query.shape[0], problem.passage.shape[0]
    step = max(1, settings.chunk_bytes // max(1, BYTES_PER_SCORE * columns))
    chunks = -(-rows // step)
    step = -(-rows // chunks)
    if problem.query.dtype == jnp.float16:  # it has no room for exponentials
        problem = problem._replace(query=_float32(problem.query), passage=_float32(problem.passage))
    passage_id = problem.passage_id
    target_id = None if passage_id is None else passage_id[problem.target]
    inputs = (problem.query, problem.target, target_id, problem.row_weight)
    body = partial(_chunk, settings.label_smoothing, gradients, problem)
    passage_grad = jnp.zeros(problem.passage.shape if gradients else (0,), jnp.float32)
    if chunks == 1:
        passage_grad, out = body(passage_grad, inputs)
    else:
        passage_grad, out = lax.scan(body, passage_grad, jax.tree.map(partial(_divide, chunks, step), inputs))
        out = jax.tree.map(lambda whole: whole.reshape(-1, *whole.shape[2:])[:rows], out)
    return ContrastiveResult(
        loss=out.loss.sum(),
        query_grad=out.query_grad if gradients else jnp.zeros((0,), jnp.float32),
        passage_grad=passage_grad,
        scale_grad=out.scale_grad.sum(),
        log_normalizer=out.log_normalizer,
        target_score=out.target_score,
        correct=out.correct,
    )


class _Out(NamedTuple):
    """What a chunk's rows give, [rows] and [rows, D]; loss and scale_grad by row, weighted."""

    loss: Any
    query_grad: Any
    scale_grad: Any
    log_normalizer: Any
    target_score: Any
    correct: Any


def _chunk(
    label_smoothing: float, gradients: bool, problem: Problem, passage_grad: jax.Array, inputs: Any
) -> tuple[jax.Array, _Out]:
    query, target, target_id, weight = inputs
    passage, scale, column_id = problem.passage, problem.scale, problem.passage_id
    score = _product(query, passage, ((1,), (1,)))
    is_target = lax.broadcasted_iota(jnp.int32, score.shape, 1) == target[:, None]
    negative = ~is_target
    if column_id is not None:
        negative &= (column_id != target_id[:, None]) & (column_id != NO_PASSAGE)

    target_score = jnp.where(is_target, score, 0.0).sum(1)
    top = jnp.where(negative, score, NOTHING).max(1)
    below = score - top[:, None]
    exponential = jnp.where(negative, jnp.exp(scale * below), 0.0)
    moment = jnp.where(negative, exponential * below, 0.0).sum(1)
    rows = Rows(target_score, top, exponential.sum(1), moment)
    terms = row_terms(rows, scale)
    loss, scale_grad = terms.loss, terms.scale_grad
    largest = largest_weight(problem.row_weight)
    gradient = exponential * (terms.factor * (weight / largest))[:, None]
    if label_smoothing > 0:
        share = label_smoothing / (1 + negative.sum(1))
        spread = share * jnp.where(negative, score - target_score[:, None], 0.0).sum(1)
        loss, scale_grad = loss - scale * spread, scale_grad - spread
        gradient = jnp.where(negative, gradient - (share * (weight / largest))[:, None], 0.0)

    query_grad = None
    if gradients:
        query_grad, addition = _gradients(query, passage, gradient, is_target, target)
        query_grad, addition = scale * largest * query_grad, scale * largest * addition
        passage_grad = passage_grad + addition
    scaled = scale * target_score
    return passage_grad, _Out(
        weight * loss, query_grad, weight * scale_grad, terms.loss + scaled, scaled, target_score > top
    )


def _gradients(
    query: jax.Array,
    passage: jax.Array,
    gradient: jax.Array,
    is_target: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Of query and passage, from those of the scores of negatives, of which the target's is minus the sum."""
    rounded = gradient.astype(query.dtype)
    of_target = -rounded.astype(jnp.float32).sum(1)
    whole = jnp.where(is_target, of_target[:, None].astype(query.dtype), rounded)
    query_grad = _product(whole, passage, ((1,), (0,)))
    if query.dtype != jnp.float32:  # what rounding took from the target's would not cancel against the others
        lost = of_target - of_target.astype(query.dtype).astype(jnp.float32)
        query_grad += lost[:, None] * _float32(passage[target])
    return query_grad, _product(whole, query, ((0,), (0,)))


def _product(a: jax.Array, b: jax.Array, dimensions: tuple[tuple[int], tuple[int]]) -> jax.Array:
    """float32 sums: of float32 products, or of bfloat16 ones, which are exact."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (dimensions, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _divide(chunks: int, step: int, array: jax.Array) -> jax.Array:
    """[N, ...] as [chunks, step, ...]; rows that are added have the weight zero."""
    padding = [(0, chunks * step - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(chunks, step, *array.shape[1:])


def _float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.float32)
