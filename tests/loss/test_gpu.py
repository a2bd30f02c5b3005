"""The native implementation on a GPU; its driver also on the CPU, with the kernel written out in torch.

(The kernels for bfloat16 are in test_cuda_emulated.py.)
"""

import pytest
import torch

from fastdense import contrastive_loss, contrastive_loss_and_grad
from fastdense.loss.implementations import native
from fastdense.loss.problem import make_problem

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OPTIONS = {
    "plain": {},
    "ids": {"passage_id": torch.arange(90) % 40},
    "weight": {"weight": torch.arange(30) % 4 * 0.5},
    "smoothing over ids": {"label_smoothing": 0.2, "passage_id": torch.arange(90) % 40},
    "sum": {"reduction": "sum"},
}


def rows_in_torch(
    scores,
    target,
    scale,
    passage_id,
    weight,
    label_smoothing,
    loss,
    scale_grad,
    log_norm,
    target_score,
    correct,
):
    """What the kernel of csrc/cuda/row_epilogue.cu does, by torch's autograd."""
    with torch.enable_grad():
        dot = scores.detach().double().requires_grad_()
        scale = scale.detach().double().requires_grad_()
        score = dot * scale
        left_out = torch.zeros_like(score, dtype=torch.bool)
        rows = torch.arange(len(target))
        if passage_id is not None:
            left_out = passage_id[None, :] == passage_id[target][:, None]
            left_out[rows, target] = False
        log_probability = score.masked_fill(left_out, -torch.inf).log_softmax(1)
        spread = log_probability.masked_fill(left_out, 0.0).sum(1) / (~left_out).sum(1)
        row = -(1 - label_smoothing) * log_probability[rows, target] - label_smoothing * spread
        per_row = row * weight
        dot_grad, _ = torch.autograd.grad(per_row.sum(), (dot, scale))
    per_row, score, scale = per_row.detach(), score.detach(), scale.detach()
    scale_grad.copy_((dot_grad * scores).sum(1) / scale)
    loss.copy_(per_row)
    target_score.copy_(score[rows, target])
    log_norm.copy_(score.masked_fill(left_out, -torch.inf).logsumexp(1))
    correct.copy_(score.masked_fill(left_out, -torch.inf).argmax(1) == target)
    scores.copy_(dot_grad)


@pytest.fixture
def kernel_on_cpu():
    """``fastdense::contrastive_rows_`` for CPU tensors."""
    library = torch.library.Library("fastdense", "IMPL")
    library.impl("contrastive_rows_", lambda *arguments: rows_in_torch(*arguments), "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("kernel_on_cpu")
def test_the_driver_of_the_gpu(oracle, draw, relative_error, choice, dtype):
    query, passage = draw("trained", 30, 90, 24, dtype)
    exact = oracle(query, passage, scale=12.0, **choice)
    problem = make_problem(
        query,
        passage,
        None,
        12.0,
        choice.get("passage_id"),
        choice.get("weight"),
        choice.get("label_smoothing", 0.0),
        False,
        choice.get("reduction", "mean"),
        90 * 4 * 7,
    )
    results = native._contrastive_on_gpu(
        problem.query,
        problem.passage,
        problem.target,
        problem.scale,
        problem.passage_id,
        problem.weight,
        problem.label_smoothing,
        problem.mean,
        True,
        True,
        problem.chunk_bytes,
    )
    for name, actual in zip(exact._fields, results, strict=False):
        assert relative_error(actual, getattr(exact, name)) < 5e-6, name


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("kind", "scale"), [("random", 1.0), ("trained", 20.0), ("trained", 100.0), ("raw", 1.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3), (torch.float16, 1e-5)])
def test_on_a_gpu(implementation, oracle, draw, relative_error, choice, kind, dtype, tolerance, scale):
    query, passage = draw(kind, 30, 90, 48, dtype)
    exact = oracle(query, passage, scale=scale, **choice)
    moved = {name: value.cuda() if torch.is_tensor(value) else value for name, value in choice.items()}
    result = contrastive_loss_and_grad(
        query.cuda(), passage.cuda(), scale=scale, implementation=implementation, chunk_bytes=5000, **moved
    )
    if kind == "raw":
        tolerance += 600 * scale * 2**-24
    for name in exact._fields:
        assert relative_error(getattr(result, name).cpu(), getattr(exact, name)) < tolerance, name


@pytest.mark.gpu
@needs_gpu
def test_a_target_out_of_range_gives_nan_on_a_gpu():
    target = torch.tensor([0, 99], device="cuda")
    result = contrastive_loss_and_grad(
        torch.ones(2, 8, device="cuda"), torch.ones(4, 8, device="cuda"), target, implementation="native"
    )
    assert result.loss.isnan()


@pytest.mark.gpu
@needs_gpu
def test_nothing_waits_for_the_gpu(implementation):
    query = torch.randn(64, 32, device="cuda", requires_grad=True)
    passage = torch.randn(128, 32, device="cuda", requires_grad=True)
    scale = torch.tensor(3.0, device="cuda", requires_grad=True)
    contrastive_loss(query, passage, scale=scale, implementation=implementation).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        contrastive_loss(query, passage, scale=scale, implementation=implementation).backward()
        contrastive_loss_and_grad(query, passage, scale=2.0, symmetric=True, implementation=implementation)
    finally:
        torch.cuda.set_sync_debug_mode("default")
