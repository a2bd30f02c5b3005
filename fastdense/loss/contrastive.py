"""The public contrastive loss, as a function of autograd, as a module, and as loss and gradients at once."""

import math

import torch
from torch import Tensor, nn

from fastdense.loss import operator, rules
from fastdense.loss.backends import choose
from fastdense.loss.operator import ContrastiveResult
from fastdense.loss.problem import check_hardest, make_problem

__all__ = ["ContrastiveLoss", "ContrastiveResult", "contrastive_loss", "contrastive_loss_and_grad"]


def contrastive_loss(
    query: Tensor,
    passage: Tensor,
    target: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    passage_id: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    symmetric: bool = False,
    reduction: str = "mean",
    implementation: str = "auto",
    chunk_bytes: int | None = None,
) -> Tensor:
    """Softmax cross-entropy of each query's target among all passages (InfoNCE).

    Without the later arguments it is ``F.cross_entropy(scale * query @ passage.T, target)``. With them, unfused::

        score = scale * query @ passage.T
        left_out = (passage_id == passage_id[target][:, None]) & (arange(M) != target[:, None])
        score = score.masked_fill(left_out, -inf)
        row = (1 - label_smoothing) * -log_softmax(score, 1)[arange(N), target]
            + label_smoothing * mean of -log_softmax(score, 1) over each row's columns that are not left out
        loss = (weight * row).sum() / weight.sum()    # reduction="mean"; "sum" does not divide

    Loss and gradients are computed together in the forward pass, in row chunks, so that no [N, M] matrix is ever in
    memory; ``backward`` multiplies the gradients by the incoming one. It cannot be differentiated twice. Where no input
    wants a gradient, none is computed.

    Args:
        query: [N, D], float32, bfloat16 or float16 (float64 by the reference implementation).
        passage: [M, D], of the same dtype and device. A non-contiguous tensor is fine.
        target: [N] integers in [0, M): the row of each query's passage. Default: ``arange(N) * (M // N)``, each query's
            passage first in its group; M must then be a multiple of N.
        scale: 1 / temperature, greater than 0; a number, or a tensor with one element, which may want a gradient.
        passage_id: [M] integers. A passage with the id of a query's target, other than the target itself, is left out
            of that query's row: a duplicate is no negative.
        weight: [N] numbers >= 0, floating point: what each row counts. "mean" divides by their sum; where that is zero
            (and where N is zero), loss and gradients are zero.
        label_smoothing: in [0, 1), spread evenly over the columns that take part in the row.
        symmetric: the mean of this loss and the one in the other direction: for each query, its target passage picks
            the query out of all queries, with the same weights, and with queries of equal target id left out. "native"
            on a CPU and "reference" walk over the scores once, and once more over those that half of ``chunk_bytes``
            does not keep: (8 - 2 f) N M D operations where it keeps a fraction f, instead of 6. The others compute the
            two directions one after the other, 6 N M D + 6 N N D.
        reduction: "mean" or "sum" over rows.
        implementation: "auto", "native", "triton" or "reference"; see :func:`fastdense.backends`.
        chunk_bytes: how much memory a chunk of scores may take. Default: the environment variable
            FASTDENSE_LOSS_CHUNK_BYTES, else 48 MiB on a CPU and 1 GiB elsewhere. A chunk has at least one row.

    Returns:
        The loss, shape [], float32 (float64 for float64 inputs). Gradients have the dtypes of their inputs.
        Scores that are not finite (from inputs that are not, or from overflow of the dot product) make it, or at least
        the gradients, nan or inf.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    problem = make_problem(
        query, passage, target, scale, passage_id, weight, label_smoothing, symmetric, reduction, chunk_bytes
    )
    name = choose(implementation, query.device, query.dtype)
    recording = torch.is_grad_enabled()
    return operator.differentiable_loss(
        name,
        problem,
        query_grad=recording and query.requires_grad,
        passage_grad=recording and passage.requires_grad,
    )


def contrastive_loss_and_grad(
    query: Tensor,
    passage: Tensor,
    target: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    passage_id: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    symmetric: bool = False,
    reduction: str = "mean",
    hardest: int = 0,
    implementation: str = "auto",
    chunk_bytes: int | None = None,
) -> ContrastiveResult:
    """The loss of :func:`contrastive_loss` and all its gradients at once, outside autograd, in float32.

    The arguments are those of :func:`contrastive_loss`. Nothing waits for the device.

    Args:
        hardest: how many of each query's hardest negatives to return: the columns that score highest, other than the
            target and what ``passage_id`` leaves out. No [N, M] matrix is made. "native" on a CPU and "reference" take
            them from the scores that they compute anyway; the others make a pass of their own, 2 N M D operations.

    Returns:
        A :class:`ContrastiveResult`. Its by-products (log_normalizer, target_score, correct, hardest_index and
        hardest_score) are those of the direction from query to passage, also if ``symmetric``. A target that ties with
        another column does not count as correct.
    """
    check_hardest(hardest)
    with torch.no_grad():
        problem = make_problem(
            query, passage, target, scale, passage_id, weight, label_smoothing, symmetric, reduction, chunk_bytes
        )
        name = choose(implementation, query.device, query.dtype)
        return operator.call(name, problem, query_grad=True, passage_grad=True, hardest=hardest)


class ContrastiveLoss(nn.Module):
    """:func:`contrastive_loss` as a module that owns its scale.

    Args:
        scale: 1 / temperature; the initial one if ``learnable``.
        learnable: train the scale, by its logarithm (the parameter ``log_scale``), which keeps it positive.
        label_smoothing, symmetric, reduction, implementation, chunk_bytes: as in :func:`contrastive_loss`.
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        learnable: bool = False,
        label_smoothing: float = 0.0,
        symmetric: bool = False,
        reduction: str = "mean",
        implementation: str = "auto",
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__()
        rules.check_scale_value(scale)
        rules.check_options(label_smoothing, reduction, chunk_bytes)
        self.fixed_scale = float(scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learnable else None
        self.label_smoothing = label_smoothing
        self.symmetric = symmetric
        self.reduction = reduction
        self.implementation = implementation
        self.chunk_bytes = chunk_bytes

    @property
    def scale(self) -> float | Tensor:
        """The scale in use: a number, or ``exp(log_scale)`` if learnable."""
        return self.fixed_scale if self.log_scale is None else self.log_scale.float().exp()

    def forward(
        self,
        query: Tensor,
        passage: Tensor,
        target: Tensor | None = None,
        *,
        passage_id: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, shape []; arguments as in :func:`contrastive_loss`."""
        return contrastive_loss(
            query,
            passage,
            target,
            scale=self.scale,
            passage_id=passage_id,
            weight=weight,
            label_smoothing=self.label_smoothing,
            symmetric=self.symmetric,
            reduction=self.reduction,
            implementation=self.implementation,
            chunk_bytes=self.chunk_bytes,
        )

    def extra_repr(self) -> str:
        learnable = self.log_scale is not None
        scale = self.fixed_scale if self.log_scale is None else self.log_scale.detach().exp().item()
        return f"scale={scale:g}, learnable={learnable}, symmetric={self.symmetric}"
