"""The contrastive loss as two Pallas kernels for TPUs: 8 N M D operations, and no score ever leaves VMEM.

The first keeps a block of queries and streams the passages past it. As flash attention does, it rescales running sums
when a larger score comes: those of :class:`Rows`, and the sum of passages that is the query's gradient. The second
keeps a block of passages, streams the queries, computes the scores again and sums the passages' gradients. The
target's part and label smoothing are sums over N or M rows, which XLA does in float32. docs/jax-loss.md says why.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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

INTERPRET: Any = False
"""True or ``pltpu.InterpretParams(...)`` runs the kernels without a TPU. For tests; read while tracing."""

VMEM_BYTES = 16 * 2**20  # what compilers allow a kernel, and all that a TPU v3 has
BLOCKS = ((512, 256), (256, 256), (256, 128), (128, 128))  # rows that stay, rows that stream past them; best first
ROW_BYTES = 8 * 2 * 128 * 4  # eight numbers a row, each in a line of 128, and all of them twice
WITHOUT_BFLOAT16 = ("TPU v2", "TPU v3")  # Mosaic takes no bfloat16 factors there


def unavailable(platform: str, width: int, dtype: Any) -> str | None:
    """Why the kernels cannot run on a platform for representations of a width, or None if they can."""
    if platform != "tpu" and not INTERPRET:
        return f"its kernels are for TPUs, and the device is a {platform}"
    if width == 0 or blocks(width, dtype) is None:
        return f"no block of representations of width {width} fits into a TPU's vector memory"
    return None


def blocks(width: int, dtype: Any) -> tuple[int, int] | None:
    """How many rows stay in VMEM and how many stream past them at a time; None if even the fewest do not fit."""
    width = _round_up(width, 128)
    # A bound for what the compilers for v3 and v5e reported: two buffers of each factor and of the sums, the factors'
    # parts for exact float32 products or their copies in float32, and the scores.
    factor_bytes = 12 if jnp.dtype(dtype) == jnp.bfloat16 else 14
    for stay, stream in BLOCKS:
        sums, scores = 2 * 4 * stay * width, 4 * 4 * stay * stream
        if (stay + stream) * width * factor_bytes + sums + scores + stay * ROW_BYTES <= VMEM_BYTES:
            return stay, stream
    return None


def contrastive(settings: Settings, problem: Problem, gradients: bool) -> ContrastiveResult:
    """Loss, gradients and by-products; without ``gradients`` those of query and passage are empty."""
    if problem.query.dtype == jnp.float16:  # TPUs have no such products
        problem = problem._replace(query=_float32(problem.query), passage=_float32(problem.passage))
    kernels = _Kernels(problem, widen=settings.device_kind in WITHOUT_BFLOAT16)
    rows, rounded_total, *passage_sum = kernels.over_passages(gradients)
    scale, weight = problem.scale, problem.row_weight
    terms = row_terms(rows, scale)
    loss, scale_grad = terms.loss, terms.scale_grad
    query_grad = passage_grad = jnp.zeros((0,), jnp.float32)
    if gradients:
        coefficient = terms.factor * weight
        of_query, of_target = _float32(problem.query), _float32(problem.passage[problem.target])
        # The sum of exponentials as they were rounded for the product: what the passages share then cancels.
        query_grad = coefficient[:, None] * (passage_sum[0] - rounded_total[:, None] * of_target)
        largest = largest_weight(weight)
        passage_grad = largest * kernels.over_queries(rows.top, coefficient / largest)
        passage_grad = passage_grad.at[problem.target].add(-(coefficient * rows.total)[:, None] * of_query)
    if settings.label_smoothing > 0:
        smoothing = _smoothing(settings.label_smoothing, problem)
        loss, scale_grad = loss - scale * smoothing.spread, scale_grad - smoothing.spread
        if gradients:
            query_grad, passage_grad = query_grad + smoothing.query_grad, passage_grad + smoothing.passage_grad
    return ContrastiveResult(
        loss=(weight * loss).sum(),
        query_grad=scale * query_grad,
        passage_grad=scale * passage_grad,
        scale_grad=(weight * scale_grad).sum(),
        log_normalizer=terms.loss + scale * rows.target,
        target_score=scale * rows.target,
        correct=rows.target > rows.top,
    )


class _Smoothing(NamedTuple):
    """What label smoothing adds: the gradients before scaling, and what each row's loss loses."""

    spread: jax.Array
    query_grad: jax.Array
    passage_grad: jax.Array


def _smoothing(amount: float, problem: Problem) -> _Smoothing:
    """Every negative loses the same share of its row's probability, so sums over all columns, less those with the
    target's id, are enough: nothing here is [N, M]."""
    query, passage, target = _float32(problem.query), _float32(problem.passage), problem.target
    columns = passage.shape[0]
    group, takes_part = lax.iota(jnp.int32, columns), jnp.ones((columns, 1), jnp.float32)
    if problem.passage_id is not None:
        group = jnp.searchsorted(jnp.sort(problem.passage_id), problem.passage_id).astype(jnp.int32)
        takes_part = _float32(problem.passage_id != NO_PASSAGE)[:, None]
        passage = passage * takes_part
    own = group[target]
    alike = jax.ops.segment_sum(jnp.ones(columns, jnp.float32), group, columns)[own]
    negatives = takes_part.sum() - alike
    share = amount / (1 + negatives)
    of_negatives = passage.sum(0) - jax.ops.segment_sum(passage, group, columns)[own]
    difference = share[:, None] * (of_negatives - negatives[:, None] * passage[target])
    shared = (share * problem.row_weight)[:, None] * query
    passage_grad = jax.ops.segment_sum(shared, own, columns)[group] - takes_part * shared.sum(0)
    return _Smoothing(
        spread=(query * difference).sum(1),
        query_grad=-problem.row_weight[:, None] * difference,
        passage_grad=passage_grad.at[target].add(negatives[:, None] * shared),
    )


class _Kernels:
    """Both kernels on a problem, with its arrays in blocks of whole size."""

    def __init__(self, problem: Problem, widen: bool) -> None:
        self._problem = problem
        self._widen = widen
        chosen = blocks(problem.query.shape[1], problem.query.dtype)
        assert chosen is not None
        self._stay, self._stream = chosen
        passage_id = problem.passage_id
        self._target_id = None if passage_id is None else passage_id[problem.target]

    def over_passages(self, gradients: bool) -> tuple[Any, ...]:
        """Sums of each row, [N]; the sum of its e as rounded; with ``gradients`` the sum of e * passage, [N, D]."""
        rows, width = self._problem.query.shape
        layout = _Layout(rows, len(self._problem.passage), self._stay, self._stream, query_axis=0)
        shapes = [(layout.rows, 1)] * 5 + [(layout.rows, width)] * gradients
        results = self._call(_passages_kernel, layout, {}, [layout.query_block(shape) for shape in shapes], shapes)
        numbers = [result[:rows, 0] for result in results[:5]]
        return Rows(*numbers[:4]), numbers[4], *(result[:rows] for result in results[5:])

    def over_queries(self, top: jax.Array, coefficient: jax.Array) -> jax.Array:
        """[M, D]: the sum of coefficient * e * query."""
        columns, width = self._problem.passage.shape
        layout = _Layout(len(self._problem.query), columns, self._stream, self._stay, query_axis=1)
        numbers = {"top": top, "coefficient": coefficient}
        shape = (layout.columns, width)
        (result,) = self._call(_queries_kernel, layout, numbers, [layout.passage_block(shape)], [shape])
        return result[:columns]

    def _call(self, kernel: Any, layout: "_Layout", numbers: dict[str, jax.Array], out_specs: Any, shapes: Any) -> Any:
        problem = self._problem
        by_query = {"target": problem.target, **numbers}
        if self._target_id is not None:
            by_query["target_id"] = self._target_id
        query, passage = layout.pad_rows(problem.query), layout.pad_columns(problem.passage)
        vectors = [layout.pad_rows(vector[:, None]) for vector in by_query.values()]
        inputs = [problem.scale.reshape(1, 1), query, passage, *vectors]
        in_specs = [
            pl.BlockSpec(memory_space=pltpu.SMEM),
            layout.query_block(query.shape),
            layout.passage_block(passage.shape),
            *(layout.query_block(vector.shape) for vector in vectors),
        ]
        names = ["scale", "query", "passage", *by_query]
        if problem.passage_id is not None:
            names.append("passage_id")
            inputs.append(layout.pad_columns(problem.passage_id[:, None]).T)
            in_specs.append(layout.id_block())
        return pl.pallas_call(
            functools.partial(kernel, names, len(problem.passage), self._widen),
            grid=layout.grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=INTERPRET,
        )(*inputs)


class _Layout:
    """How queries and passages are cut into blocks, and which axis of the grid walks over which."""

    def __init__(self, rows: int, columns: int, row_block: int, column_block: int, query_axis: int) -> None:
        self._row_block = _even_block(rows, row_block, 16)
        self._column_block = _even_block(columns, column_block, 128)
        self.rows, self.columns = _round_up(rows, self._row_block), _round_up(columns, self._column_block)
        self._axis = query_axis
        steps = (self.rows // self._row_block, self.columns // self._column_block)
        self.grid = steps if query_axis == 0 else steps[::-1]

    def pad_rows(self, array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, self.rows - len(array)), (0, 0)))

    def pad_columns(self, array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, self.columns - len(array)), (0, 0)))

    def query_block(self, shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((self._row_block, shape[1]), lambda *step: (step[self._axis], 0))

    def passage_block(self, shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((self._column_block, shape[1]), lambda *step: (step[1 - self._axis], 0))

    def id_block(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, self._column_block), lambda *step: (0, step[1 - self._axis]))


def _passages_kernel(names: list[str], columns: int, widen: bool, *refs: Any) -> None:
    step = pl.program_id(1)
    inputs = dict(zip(names, refs, strict=False))
    target_ref, top_ref, total_ref, moment_ref, rounded_ref, *sum_ref = refs[len(names) :]

    @pl.when(step == 0)
    def start() -> None:
        top_ref[...] = jnp.full(top_ref.shape, NOTHING, jnp.float32)
        for ref in (target_ref, total_ref, moment_ref, rounded_ref, *sum_ref):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    scale = inputs["scale"][0, 0]
    score, is_target, negative = _scores(inputs, step, columns, widen)
    before, total = top_ref[...], total_ref[...]
    top = jnp.maximum(before, jnp.where(negative, score, NOTHING).max(1, keepdims=True))
    below = score - top
    exponential = jnp.where(negative, jnp.exp(scale * below), 0.0)
    factor = exponential.astype(inputs["passage"].dtype)
    rescale = jnp.exp(scale * (before - top))

    target_ref[...] += jnp.where(is_target, score, 0.0).sum(1, keepdims=True)
    top_ref[...] = top
    total_ref[...] = rescale * total + exponential.sum(1, keepdims=True)
    moment = jnp.where(negative, exponential * below, 0.0).sum(1, keepdims=True)
    moment_ref[...] = rescale * (moment_ref[...] + total * (before - top)) + moment
    rounded_ref[...] = rescale * rounded_ref[...] + factor.astype(jnp.float32).sum(1, keepdims=True)
    for ref in sum_ref:
        ref[...] = rescale * ref[...] + _product(factor, inputs["passage"][...], ((1,), (0,)), widen)


def _queries_kernel(names: list[str], columns: int, widen: bool, *refs: Any) -> None:
    inputs = dict(zip(names, refs, strict=False))
    sum_ref = refs[-1]

    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    score, _, negative = _scores(inputs, pl.program_id(0), columns, widen)
    exponential = jnp.exp(inputs["scale"][0, 0] * (score - inputs["top"][...]))
    gradient = jnp.where(negative, exponential * inputs["coefficient"][...], 0.0)
    query = inputs["query"][...]
    sum_ref[...] += _product(gradient.astype(query.dtype), query, ((0,), (0,)), widen)


def _scores(inputs: dict[str, Any], column_step: Any, columns: int, widen: bool) -> tuple[jax.Array, ...]:
    """A block's dot products, which of them are of targets, and which of negatives."""
    score = _product(inputs["query"][...], inputs["passage"][...], ((1,), (1,)), widen)
    column = lax.broadcasted_iota(jnp.int32, score.shape, 1) + column_step * score.shape[1]
    is_target = column == inputs["target"][...]
    negative = ~is_target & (column < columns)
    if "passage_id" in inputs:
        passage_id = inputs["passage_id"][...]
        negative = negative & (passage_id != inputs["target_id"][...]) & (passage_id != NO_PASSAGE)
    return score, is_target, negative


def _product(a: jax.Array, b: jax.Array, dimensions: tuple[tuple[int], tuple[int]], widen: bool) -> jax.Array:
    """float32 sums: of float32 products, or of bfloat16 ones, which are exact also with ``widen``: one pass."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    if widen:
        a, b = _float32(a), _float32(b)
    return lax.dot_general(a, b, (dimensions, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _even_block(rows: int, most: int, multiple: int) -> int:
    """The block size for the fewest blocks of at most ``most`` rows, with the least padding."""
    return _round_up(-(-rows // -(-rows // most)), multiple)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.float32)
