"""What a valid contrastive problem is in JAX, and what any implementation makes of a row."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdense.loss import rules

Array = jax.Array | np.ndarray
FLOATING = ("float32", "bfloat16", "float16")
NOTHING = -1e30  # the highest score of a row without negatives
NO_PASSAGE = -(2**31)  # the passage_id of a column that takes part in no row


class Problem(NamedTuple):
    """The arrays of a checked problem, complete with their defaults."""

    query: Any
    """[N, D]"""
    passage: Any
    """[M, D], of the same dtype"""
    scale: Any
    """float32 []"""
    target: Any
    """int32 [N]; one that is out of range has a row weight of nan"""
    passage_id: Any
    """int32 [M], or None; NO_PASSAGE where a column is padding"""
    row_weight: Any
    """float32 [N]: what the loss of each row is multiplied by"""

    def transposed(self, *, by_id: bool) -> "Problem":
        """The problem of the other direction: each query's target passage picks its query out of all queries.

        Args:
            by_id: a query takes the id of its target, so another query with the same positive passage is no negative.
                Without it, ids say only which columns are padding, and so is a query whose target is.
        """
        places = lax.iota(jnp.int32, self.query.shape[0])
        query_id = None if self.passage_id is None else self.passage_id[self.target]
        if query_id is not None and not by_id:
            query_id = jnp.where(query_id == NO_PASSAGE, NO_PASSAGE, places)
        return self._replace(query=self.passage[self.target], passage=self.query, target=places, passage_id=query_id)


@dataclass(frozen=True)
class Settings:
    """What of a problem is fixed when it is compiled.

    Attributes:
        implementation: "xla" or "pallas".
        label_smoothing: in [0, 1).
        chunk_bytes: what a chunk of scores may take.
        device_kind: what the device that will run it calls itself, such as "TPU v4".
    """

    implementation: str
    label_smoothing: float
    chunk_bytes: int
    device_kind: str


class ContrastiveResult(NamedTuple):
    """Loss, gradients and by-products of one problem, in float32."""

    loss: jax.Array
    """The reduced loss, shape []."""
    query_grad: jax.Array
    """d loss / d query, shape [N, D]."""
    passage_grad: jax.Array
    """d loss / d passage, shape [M, D]."""
    scale_grad: jax.Array
    """d loss / d scale, shape []."""
    log_normalizer: jax.Array
    """Each row's log-sum-exp over the columns that take part, shape [N]."""
    target_score: jax.Array
    """Each row's scaled score of its target, shape [N]."""
    correct: jax.Array
    """Whether the target scores higher than every other column that takes part, shape [N], bool."""


class Rows(NamedTuple):
    """Sums over each row's negatives: the columns that take part, other than the target. Any shape, all the same.

    With s a dot product before scaling, the exponentials are e = exp(scale * (s - top)).
    """

    target: jax.Array
    """the target's s"""
    top: jax.Array
    """the largest s, or NOTHING"""
    total: jax.Array
    """sum of e"""
    moment: jax.Array
    """sum of e * (s - top)"""


class RowTerms(NamedTuple):
    """What follows from :class:`Rows`, without label smoothing; the same shape."""

    loss: jax.Array
    """log-sum-exp less the target's score"""
    factor: jax.Array
    """a negative's probability is factor * e"""
    scale_grad: jax.Array
    """d loss / d scale"""


def row_terms(rows: Rows, scale: jax.Array) -> RowTerms:
    """Loss and probabilities of each row; neither overflows, and a tiny loss keeps its relative precision.

    The target is left out of the exponentials: its probability less one is minus the sum of the others', which does
    not cancel where that probability is nearly one.
    """
    ahead = scale * (rows.top - rows.target)  # of the target
    negatives = jnp.exp(jnp.minimum(ahead, 0.0))
    target = jnp.exp(jnp.minimum(-ahead, 0.0))
    loss = jnp.maximum(ahead, 0.0) + jnp.log1p(rows.total * negatives + (target - 1.0))
    factor = negatives / (rows.total * negatives + target)
    scale_grad = factor * (rows.moment + rows.total * (rows.top - rows.target))
    return RowTerms(loss, factor, scale_grad)


def largest_weight(row_weight: jax.Array) -> jax.Array:
    """[], what to divide weights by before they are rounded: equal ones, the usual case, then lose nothing."""
    largest = row_weight.max()
    return jnp.where(largest > 0, largest, 1.0)


def make_problem(
    query: Array,
    passage: Array,
    target: Array | None,
    scale: float | Array,
    passage_id: Array | None,
    weight: Array | None,
    is_passage: Array | None,
    reduction: str,
) -> Problem:
    """Check the arrays and fill in the defaults.

    Raises ``TypeError`` for a wrong type or dtype and ``ValueError`` for a wrong shape or value. Values in arrays
    (targets, weights, scale) are checked where they are at hand: not while tracing, nor on an accelerator.
    """
    for name, array in (("query", query), ("passage", passage)):
        _check_array(name, array)
        rules.check_representation(name, array.shape, array.dtype.name, FLOATING)
    rules.check_pair(query.shape, passage.shape, query.dtype.name, passage.dtype.name)
    rows, columns = query.shape[0], passage.shape[0]
    if target is None:
        target = np.arange(rows, dtype=np.int32) * rules.default_target_step(rows, columns)
    else:
        _check_target(target, rows, columns)
    if passage_id is not None:
        _check_vector("passage_id", passage_id, columns, "a passage")
        _check_integer("passage_id", passage_id)
        _check_ids(passage_id)
    if weight is not None:
        _check_weight(weight, rows)
    if is_passage is not None:
        _check_vector("is_passage", is_passage, columns, "a passage")
        if is_passage.dtype != bool:
            raise TypeError(f"is_passage must have the dtype bool, got {is_passage.dtype.name}")
    in_range = jnp.asarray((target >= 0) & (target < columns))
    return Problem(
        query=jnp.asarray(query),
        passage=jnp.asarray(passage),
        scale=_scale_array(scale),
        target=jnp.asarray(target).astype(jnp.int32),
        passage_id=_column_ids(passage_id, is_passage, columns),
        row_weight=jnp.where(in_range, _row_weight(weight, rows, reduction), jnp.nan),
    )


def _row_weight(weight: Array | None, rows: int, reduction: str) -> jax.Array:
    """float32 [N]; all zeros where the weights' sum is zero."""
    if weight is None:
        weight = np.ones(rows, np.float32)
    weight = lax.stop_gradient(jnp.asarray(weight).astype(jnp.float32))
    if reduction == "sum":
        return weight
    total = weight.sum()
    return jnp.where(total > 0, weight / total, 0.0)


def _column_ids(passage_id: Array | None, is_passage: Array | None, columns: int) -> jax.Array | None:
    """int32 [M], of padding too; None where no column is left out of any row."""
    ids = None if passage_id is None else _short_ids(passage_id)
    if is_passage is None:
        return ids
    return jnp.where(is_passage, jnp.arange(columns, dtype=jnp.int32) if ids is None else ids, NO_PASSAGE)


def _short_ids(passage_id: Array) -> jax.Array:
    """int32 ids that are equal where the given ones are.

    Those of uint32 and of 64 bits are numbered anew: cast, one could become NO_PASSAGE, and without x64 JAX would cut a
    long one to its lower half.
    """
    if jnp.iinfo(passage_id.dtype).max <= jnp.iinfo(jnp.int32).max:
        return jnp.asarray(passage_id).astype(jnp.int32)
    if isinstance(passage_id, np.ndarray):
        return jnp.asarray(np.unique(passage_id, return_inverse=True)[1].astype(np.int32))
    return jnp.searchsorted(jnp.sort(passage_id), passage_id).astype(jnp.int32)


def _scale_array(scale: float | Array) -> jax.Array:
    if not isinstance(scale, jax.Array | np.ndarray | np.generic):
        rules.check_scale_number(scale, "an array")
        return jnp.asarray(scale, jnp.float32)
    rules.check_scale_array("array", scale.shape, jnp.issubdtype(scale.dtype, jnp.floating), scale.dtype.name)
    if _values_readable(scale):
        rules.check_scale_value(float(np.asarray(scale).reshape(())))
    return jnp.asarray(scale).reshape(()).astype(jnp.float32)


def _check_target(target: Array, rows: int, columns: int) -> None:
    _check_vector("target", target, rows, "a query")
    _check_integer("target", target)
    if _values_readable(target) and target.size > 0:
        values = np.asarray(target)
        rules.check_target_range(int(values.min()), int(values.max()), columns)


def _check_ids(passage_id: Array) -> None:
    if passage_id.dtype == np.int32 and _values_readable(passage_id) and bool((passage_id == NO_PASSAGE).any()):
        raise ValueError(f"passage_id must not be {NO_PASSAGE}, which stands for padding")


def _check_weight(weight: Array, rows: int) -> None:
    _check_vector("weight", weight, rows, "a query")
    rules.check_weight(jnp.issubdtype(weight.dtype, jnp.floating), weight.dtype.name)
    if _values_readable(weight):
        values = np.asarray(weight).astype(np.float64)
        rules.check_weight_values(bool((np.isfinite(values) & (values >= 0)).all()))


def _check_vector(name: str, array: Array, length: int, owner: str) -> None:
    _check_array(name, array)
    rules.check_length(name, array.shape, length, owner)


def _check_array(name: str, array: Array) -> None:
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a jax.Array or a numpy.ndarray, got {type(array).__name__}")


def _check_integer(name: str, array: Array) -> None:
    rules.check_integer(name, jnp.issubdtype(array.dtype, jnp.integer), array.dtype.name)


def _values_readable(array: Array | np.generic) -> bool:
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or all(device.platform == "cpu" for device in array.devices())
