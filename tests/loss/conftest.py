"""The loss written out in float64, and the problems it is asked about."""

import os
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F


class Answer(NamedTuple):
    """Loss and gradients, all of one dtype."""

    loss: torch.Tensor
    query_grad: torch.Tensor
    passage_grad: torch.Tensor
    scale_grad: torch.Tensor


def _one_direction(score, target, passage_id, weight, label_smoothing, reduction):
    rows = score.shape[0]
    if passage_id is not None:
        duplicate = passage_id[None, :] == passage_id[target][:, None]
        duplicate[torch.arange(rows), target] = False
        score = score.masked_fill(duplicate, -torch.inf)
    taking_part = score > -torch.inf
    log_probability = F.log_softmax(score, 1)
    spread = log_probability.where(taking_part, 0.0).sum(1) / taking_part.sum(1)
    row = -(1 - label_smoothing) * log_probability[torch.arange(rows), target] - label_smoothing * spread
    weight = torch.ones(rows, dtype=score.dtype) if weight is None else weight.to(score.dtype)
    return (weight * row).sum() / (weight.sum() if reduction == "mean" else 1)


def _oracle(
    query,
    passage,
    target=None,
    *,
    scale=1.0,
    passage_id=None,
    weight=None,
    label_smoothing=0.0,
    symmetric=False,
    reduction="mean",
    dtype=torch.float64,
):
    """The unfused loss and torch's own gradients of it, computed in ``dtype``."""
    query = query.detach().to(dtype).requires_grad_()
    passage = passage.detach().to(dtype).requires_grad_()
    scale = torch.tensor(float(scale), dtype=dtype, requires_grad=True)
    rows, columns = query.shape[0], passage.shape[0]
    if target is None:
        target = torch.arange(rows) * (columns // rows)
    score = scale * (query @ passage.T)
    loss = _one_direction(score, target, passage_id, weight, label_smoothing, reduction)
    if symmetric:
        column_id = None if passage_id is None else passage_id[target]
        other = _one_direction(score[:, target].T, torch.arange(rows), column_id, weight, label_smoothing, reduction)
        loss = (loss + other) / 2
    return Answer(loss.detach(), *torch.autograd.grad(loss, (query, passage, scale)))


@pytest.fixture(scope="session")
def oracle():
    """``oracle(query, passage, target, **options) -> Answer`` in float64, or in the dtype named."""
    return _oracle


def _draw(kind, rows, columns, width, dtype=torch.float32, seed=0):
    """Query and passage: unit vectors of one of the kinds below, or "raw" dot products of hundreds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, passage = normal(rows, width), normal(columns, width)
    if kind == "raw":  # like untrained BERT: a large common part, dot products near 300
        common = normal(width) * (300 / width) ** 0.5
        return (query * 0.5 + common).to(dtype), (passage * 0.5 + common).to(dtype)
    query, passage = F.normalize(query, dim=1), F.normalize(passage, dim=1)
    if kind == "trained":  # the cosine of query and target is about 0.7
        target = torch.arange(rows) * (columns // max(rows, 1)) % max(columns, 1)
        passage[target] = F.normalize(0.7 * query + 0.71 * passage[target], dim=1)
    if kind == "low rank":  # four directions, and a little of all others
        basis = normal(4, width)
        query, passage = (F.normalize(rows[:, :4] @ basis + 0.1 * rows, dim=1) for rows in (query, passage))
    if kind == "dominated":  # every query is closest to one column, which is nobody's target
        common = F.normalize(normal(width), dim=0)
        query = F.normalize(query + 2 * common, dim=1)
        passage[columns // 2] = common
    if kind == "equal":  # scores: the softmax is flat, and the queries' gradients are zero
        passage[:] = passage[0]
    return query.to(dtype), passage.to(dtype)


@pytest.fixture(scope="session")
def draw():
    """``draw(kind, rows, columns, width, dtype, seed) -> (query, passage)``."""
    return _draw


@pytest.fixture(scope="session")
def relative_error():
    """Norm of the difference over norm of the expected tensor; how tensors are compared in this folder."""

    def relative(actual, expected):
        difference = (actual.double() - expected.double()).norm()
        return float(difference / expected.double().norm().clamp_min(1e-30))

    return relative


# Triton's interpreter is one process's choice: test_triton.py starts one that runs these tests with it.
IMPLEMENTATIONS = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["native", "reference"]


@pytest.fixture(scope="session")
def implementations():
    """The names of those that this process tests."""
    return IMPLEMENTATIONS


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """The name of each implementation in turn."""
    return request.param


@pytest.fixture(scope="session")
def rounding_of():
    """``rounding_of(implementation, dtype)``: what storing probabilities in ``dtype`` adds to a gradient's error."""

    def added(implementation, dtype):
        if implementation == "native":  # on a CPU with bfloat16 products
            return 8e-3 if dtype == torch.bfloat16 else 0.0
        if implementation != "triton":
            return 0.0
        return {torch.float32: 0.0, torch.bfloat16: 4e-3, torch.float16: 4e-4}[dtype]

    return added
