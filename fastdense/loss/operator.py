"""The torch operator that every implementation is: one schema, one fake kernel, one backward.

``fastdense::contrastive_<implementation>`` computes loss and gradients in one call. Its backward only multiplies the
gradients that the forward call has left by the incoming one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fastdense.loss.problem import Problem, accumulation_dtype

ARGUMENTS = (
    "(Tensor query, Tensor passage, Tensor target, Tensor scale, Tensor? passage_id, Tensor? weight, "
    "float label_smoothing, bool symmetric, bool mean, bool query_grad, bool passage_grad, int hardest, "
    "int chunk_bytes, bool by_products)"
)
# by_products: log_normalizer, target_score, correct, hardest_index and hardest_score, or none of them, which small
# problems notice.
RESULTS = "(Tensor loss, Tensor query_grad, Tensor passage_grad, Tensor scale_grad, Tensor[] by_products)"


class ContrastiveResult(NamedTuple):
    """Loss, gradients and by-products of one problem; float32 (float64 for float64 inputs), outside autograd."""

    loss: Tensor
    """The reduced loss, shape []."""
    query_grad: Tensor
    """d loss / d query, shape [N, D]."""
    passage_grad: Tensor
    """d loss / d passage, shape [M, D]."""
    scale_grad: Tensor
    """d loss / d scale, shape []."""
    log_normalizer: Tensor
    """Each row's log-sum-exp over the columns that take part, shape [N]."""
    target_score: Tensor
    """Each row's scaled score of its target, shape [N]."""
    correct: Tensor
    """Whether the target scores higher than every other column that takes part, shape [N], bool."""
    hardest_index: Tensor
    """The columns with the highest scores among those that take part other than the target, in falling order; -1
    where a row has no more. Shape [N, hardest], int64."""
    hardest_score: Tensor
    """Their scaled scores, -inf where there is none. Shape [N, hardest]."""


def call(
    implementation: str, problem: Problem, query_grad: bool, passage_grad: bool, hardest: int = 0
) -> ContrastiveResult:
    """Run an implementation's operator; a gradient that is not asked for comes back without elements."""
    arguments = _arguments(problem, query_grad, passage_grad, hardest, True)
    *result, by_products = _run(_operator(implementation), arguments)
    return ContrastiveResult(*result, *by_products)


def differentiable_loss(implementation: str, problem: Problem, query_grad: bool, passage_grad: bool) -> Tensor:
    """The loss alone, with its backward.

    Outside torch.compile a function of autograd does what the operator's own registration would, in half the time:
    small problems notice.
    """
    operator, arguments = _operator(implementation), _arguments(problem, query_grad, passage_grad, 0, False)
    compiling = torch.compiler.is_compiling()
    if not compiling:
        _refuse_tangents(problem.query, problem.passage, problem.scale)
    if compiling or not (query_grad or passage_grad or problem.scale.requires_grad):
        loss: Tensor = _run(operator, arguments)[0]
        return loss
    return _EagerLoss.apply(problem.query, problem.passage, problem.scale, operator, arguments)


def _refuse_tangents(*inputs: Tensor) -> None:
    """Forward-mode differentiation would take the loss for a constant."""
    if any(unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise RuntimeError(
            "contrastive_loss has no forward-mode derivative (torch.func.jvp, jacfwd): its gradients come from backward"
        )


def _run(operator: Callable[..., tuple[Any, ...]], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operator has a backward; where it is of no use, it is passed over, which small problems notice."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _operator(implementation: str) -> Callable[..., tuple[Any, ...]]:
    operator: Callable[..., tuple[Any, ...]] = getattr(torch.ops.fastdense, f"contrastive_{implementation}").default
    return operator


def _arguments(
    problem: Problem, query_grad: bool, passage_grad: bool, hardest: int, by_products: bool
) -> tuple[Any, ...]:
    return (
        problem.query,
        problem.passage,
        problem.target,
        problem.scale,
        problem.passage_id,
        problem.weight,
        problem.label_smoothing,
        problem.symmetric,
        problem.mean,
        query_grad,
        passage_grad,
        hardest,
        problem.chunk_bytes,
        by_products,
    )


class _EagerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        passage: Tensor,
        scale: Tensor,
        operator: Callable[..., tuple[Any, ...]],
        arguments: tuple[Any, ...],
    ) -> Tensor:
        loss, query_grad, passage_grad, scale_grad, _ = _run(operator, arguments)
        ctx.save_for_backward(query_grad, passage_grad, scale_grad)
        ctx.dtype = query.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, loss_grad), None, None


def define(library: torch.library.Library, implementation: str, kernel: Callable[..., tuple[Tensor, ...]]) -> None:
    """Define an implementation written in Python, for every device: see :func:`as_operator`."""
    library.define(f"contrastive_{implementation}{ARGUMENTS} -> {RESULTS}")
    library.impl(f"contrastive_{implementation}", as_operator(kernel), "CompositeExplicitAutograd")
    register(library, implementation)


def as_operator(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Any, ...]]:
    """The operator from a function that takes all its arguments but the last one and returns a ContrastiveResult."""

    def contrastive(*arguments: Any) -> tuple[Any, ...]:
        *others, by_products = arguments
        result = kernel(*others)
        return (*result[:4], list(result[4:]) if by_products else [])

    return contrastive


def register(library: torch.library.Library, implementation: str) -> None:
    """Give a defined operator its fake kernel and its backward."""
    name = f"fastdense::contrastive_{implementation}"
    torch.library.register_fake(name, as_operator(_fake), lib=library)
    torch.library.register_autograd(name, _backward, setup_context=_setup_context, lib=library)


def empty_results(
    query: Tensor, passage: Tensor, query_grad: bool, passage_grad: bool, hardest: int = 0
) -> ContrastiveResult:
    """Uninitialized results of the right shapes; a gradient that is not wanted has no elements."""
    rows = query.shape[0]
    dtype = accumulation_dtype(query)
    return ContrastiveResult(
        loss=query.new_empty((), dtype=dtype),
        query_grad=query.new_empty(query.shape if query_grad else (0,), dtype=dtype),
        passage_grad=query.new_empty(passage.shape if passage_grad else (0,), dtype=dtype),
        scale_grad=query.new_empty((), dtype=dtype),
        log_normalizer=query.new_empty((rows,), dtype=dtype),
        target_score=query.new_empty((rows,), dtype=dtype),
        correct=query.new_empty((rows,), dtype=torch.bool),
        hardest_index=query.new_empty((rows, hardest), dtype=torch.int64),
        hardest_score=query.new_empty((rows, hardest), dtype=dtype),
    )


def _fake(
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
    return tuple(empty_results(query, passage, query_grad, passage_grad, hardest))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, query_grad, passage_grad, scale_grad, by_products = output
    ctx.mark_non_differentiable(query_grad, passage_grad, scale_grad, *by_products)
    ctx.save_for_backward(query_grad, passage_grad, scale_grad)
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, loss_grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    query_grad, passage_grad, scale_grad = _gradients(ctx, loss_grad)
    return query_grad, passage_grad, None, scale_grad, *(None,) * (len(ctx.needs_input_grad) - 4)


def _gradients(ctx: Any, loss_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, passage and scale; autograd drops what is not wanted. Steps that change nothing are left out, which
    small problems notice."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "contrastive_loss computes its gradient in the forward pass and cannot be differentiated twice: "
            "call backward without create_graph=True"
        )
    query_grad, passage_grad, scale_grad = ctx.saved_tensors
    if not _is_one(loss_grad):
        query_grad, passage_grad, scale_grad = query_grad * loss_grad, passage_grad * loss_grad, scale_grad * loss_grad
    if query_grad.dtype != ctx.dtype:
        query_grad, passage_grad = query_grad.to(ctx.dtype), passage_grad.to(ctx.dtype)
    return query_grad, passage_grad, scale_grad


def _is_one(loss_grad: Tensor) -> bool:
    """Whether there is nothing to multiply: a copy of large gradients less. Not asked where it would cost a wait."""
    return type(loss_grad) is Tensor and loss_grad.is_cpu and loss_grad.item() == 1.0
