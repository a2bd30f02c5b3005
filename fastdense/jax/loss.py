"""The contrastive loss for JAX: differentiable, and as loss and gradients at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fastdense.jax import loss_chunks, pallas
from fastdense.jax.loss_problem import Array, ContrastiveResult, Problem, Settings, make_problem
from fastdense.loss import rules

__all__ = ["ContrastiveResult", "contrastive_loss", "contrastive_loss_and_grad", "pick"]

IMPLEMENTATIONS = {"xla": loss_chunks, "pallas": pallas}


def contrastive_loss(
    query: Array,
    passage: Array,
    target: Array | None = None,
    *,
    scale: float | Array = 1.0,
    passage_id: Array | None = None,
    weight: Array | None = None,
    is_passage: Array | None = None,
    label_smoothing: float = 0.0,
    symmetric: bool = False,
    reduction: str = "mean",
    implementation: str = "auto",
    device: jax.Device | None = None,
    chunk_bytes: int | None = None,
) -> jax.Array:
    """Softmax cross-entropy of each query's target among all passages (InfoNCE); the formula is that of
    :func:`fastdense.contrastive_loss`.

    Differentiable in query, passage and scale. Loss and gradients are computed together in the forward pass, so that
    no [N, M] matrix is ever in memory; where nothing is differentiated, no gradient is computed. Under ``shard_map``
    (with ``check_vma=False``) it is the loss of the device's own queries against the passages it is given.

    Args:
        query: [N, D], float32, bfloat16 or float16.
        passage: [M, D], of the same dtype.
        target: [N] integers in [0, M): the row of each query's passage. Default: ``arange(N) * (M // N)``, each query's
            passage first in its group; M must then be a multiple of N. One out of range makes the loss nan where its
            value cannot be checked (while tracing, or on an accelerator).
        scale: 1 / temperature, greater than 0; a number, or a floating-point array with one element.
        passage_id: [M] integers. A passage with the id of a query's target, other than the target itself, is left out
            of that query's row. Only equality counts. 64-bit ids keep all their bits in a NumPy array (but ``jit``
            cuts its own arguments to 32); those of the dtype int32 must not be -2**31.
        weight: [N] numbers >= 0, floating point, not differentiated: what each row counts. "mean" divides by their
            sum; where that is zero (and where N is zero), loss and gradients are zero.
        is_passage: [M] bool. A column that is False is padding and takes part in no row; no target may be one.
        label_smoothing: in [0, 1), spread evenly over the columns that take part in the row; a Python number.
        symmetric: the mean of this loss and the one in the other direction, where a query takes its target's id.
        reduction: "mean" or "sum" over rows.
        implementation: "auto", "xla" or "pallas"; see :func:`pick`. One asked for by name runs or raises.
        device: one of the devices that will run it, such as ``mesh.devices.flat[0]``: what it is decides how. Default:
            the first device of the default backend, which is wrong when compiling for another one.
        chunk_bytes: how much memory a chunk of scores may take ("xla" only). Default: the environment variable
            FASTDENSE_LOSS_CHUNK_BYTES, else 48 MiB on a CPU and 1 GiB elsewhere. A chunk has at least one row.

    Returns:
        The loss, float32 []. Gradients have the dtypes of their inputs. Scores that are not finite make it nan or inf.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    rules.check_options(label_smoothing, reduction, chunk_bytes)
    problem = make_problem(query, passage, target, scale, passage_id, weight, is_passage, reduction)
    settings = _settings(problem, implementation, device, label_smoothing, chunk_bytes)
    loss = _loss(settings, problem)
    if symmetric:
        loss = (loss + _loss(settings, problem.transposed(by_id=passage_id is not None))) / 2
    return loss


def contrastive_loss_and_grad(
    query: Array,
    passage: Array,
    target: Array | None = None,
    *,
    scale: float | Array = 1.0,
    passage_id: Array | None = None,
    weight: Array | None = None,
    is_passage: Array | None = None,
    label_smoothing: float = 0.0,
    symmetric: bool = False,
    reduction: str = "mean",
    implementation: str = "auto",
    device: jax.Device | None = None,
    chunk_bytes: int | None = None,
) -> ContrastiveResult:
    """The loss of :func:`contrastive_loss` and all its gradients at once, in float32.

    The arguments are those of :func:`contrastive_loss`.

    Returns:
        A :class:`ContrastiveResult`. Its by-products (log_normalizer, target_score, correct) are those of the direction
        from query to passage, also if ``symmetric``. A target that ties with another column does not count as correct.
    """
    rules.check_options(label_smoothing, reduction, chunk_bytes)
    problem = make_problem(query, passage, target, scale, passage_id, weight, is_passage, reduction)
    settings = _settings(problem, implementation, device, label_smoothing, chunk_bytes)
    result = _run(settings, problem, gradients=True)
    if symmetric:
        other = _run(settings, problem.transposed(by_id=passage_id is not None), gradients=True)
        result = _mean_of_directions(result, other, problem.target)
    return result


def pick(device: jax.Device, width: int, dtype: Any) -> str:
    """The implementation that "auto" means on a device: "pallas" on a TPU wherever its blocks fit, else "xla".

    Args:
        device: one of those that will run it.
        width: D.
        dtype: of query and passage.
    """
    return "xla" if pallas.unavailable(device.platform, width, dtype) else "pallas"


def _settings(
    problem: Problem, implementation: str, device: jax.Device | None, label_smoothing: float, chunk_bytes: int | None
) -> Settings:
    device = device or jax.devices()[0]
    width, dtype = problem.query.shape[1], problem.query.dtype
    if implementation == "auto":
        implementation = pick(device, width, dtype)
    elif implementation not in IMPLEMENTATIONS:
        names = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}")
    elif implementation == "pallas" and (reason := pallas.unavailable(device.platform, width, dtype)):
        raise ValueError(f"implementation 'pallas' cannot run here: {reason}")
    return Settings(
        implementation=implementation,
        label_smoothing=float(label_smoothing),
        chunk_bytes=chunk_bytes or rules.default_chunk_bytes(on_cpu=device.platform == "cpu"),
        device_kind=device.device_kind,
    )


def _run(settings: Settings, problem: Problem, gradients: bool) -> ContrastiveResult:
    if problem.query.shape[0] == 0:
        return _result_without_queries(problem)
    return IMPLEMENTATIONS[settings.implementation].contrastive(settings, problem, gradients)


def _result_without_queries(problem: Problem) -> ContrastiveResult:
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((0,), jnp.float32)
    query_grad, passage_grad = (jnp.zeros(array.shape, jnp.float32) for array in (problem.query, problem.passage))
    return ContrastiveResult(zero, query_grad, passage_grad, zero, none, none, jnp.zeros((0,), bool))


def _mean_of_directions(result: ContrastiveResult, other: ContrastiveResult, target: jax.Array) -> ContrastiveResult:
    """Add the other direction, whose queries were the target passages and whose passages were the queries."""
    return result._replace(
        loss=(result.loss + other.loss) / 2,
        query_grad=(result.query_grad + other.passage_grad) / 2,
        passage_grad=result.passage_grad.at[target].add(other.query_grad) / 2,
        scale_grad=(result.scale_grad + other.scale_grad) / 2,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(settings: Settings, problem: Problem) -> jax.Array:
    return _run(settings, problem, gradients=False).loss


def _loss_forward(settings: Settings, problem: Problem) -> tuple[jax.Array, Any]:
    result = _run(settings, problem, gradients=True)
    # Arrays without elements, which carry a dtype: residuals must be arrays.
    dtypes = jnp.zeros((0,), problem.query.dtype)
    return result.loss, (result.query_grad, result.passage_grad, result.scale_grad, dtypes)


def _loss_backward(settings: Settings, residuals: Any, loss_grad: jax.Array) -> tuple[Problem]:
    query_grad, passage_grad, scale_grad, like = residuals
    return (
        Problem(
            query=(query_grad * loss_grad).astype(like.dtype),
            passage=(passage_grad * loss_grad).astype(like.dtype),
            scale=scale_grad * loss_grad,
            target=None,
            passage_id=None,
            row_weight=None,
        ),
    )


_loss.defvjp(_loss_forward, _loss_backward)
