"""Loss and gradients against float64, no worse than torch's own in the same precision."""

import pytest
import torch

from fastdense import contrastive_loss, contrastive_loss_and_grad

SHAPES = [(33, 70, 48), (1, 7, 16), (5, 1, 16), (1, 1, 3), (40, 40, 64), (17, 130, 5), (70, 75, 20)]


def last_target(rows, columns):
    return (torch.arange(rows) * 7 + columns - 1) % columns


def tolerance(kind, scale):
    """2e-6; for raw scores also their rounding, which differs with the order in which a dot product is summed."""
    return 2e-6 + (600 * scale * 2**-24 if kind == "raw" else 0)


@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_as_exact_as_torch(implementation, oracle, draw, relative_error, kind, scale, shape):
    query, passage = draw(kind, *shape)
    target = last_target(*shape[:2])
    exact = oracle(query, passage, target, scale=scale)
    plain = oracle(query, passage, target, scale=scale, dtype=torch.float32)
    result = contrastive_loss_and_grad(
        query, passage, target, scale=scale, implementation=implementation, chunk_bytes=4096
    )
    for name in exact._fields:
        actual, expected = getattr(result, name), getattr(exact, name)
        assert actual.dtype == torch.float32
        assert actual.isfinite().all()
        if expected.norm() == 0:  # a single column: nothing to learn
            assert actual.norm() == 0
            continue
        allowed = 1.25 * relative_error(getattr(plain, name), expected) + tolerance(kind, scale)
        assert relative_error(actual, expected) <= allowed, name


@pytest.mark.parametrize("rows", [32, 70])  # few queries go a way of their own in csrc/cpu
@pytest.mark.parametrize("symmetric", [False, True])
def test_scores_of_billions_stay_finite(implementation, oracle, relative_error, rows, symmetric):
    """Their rounding alone is hundreds, and differs between two products."""
    generator = torch.Generator().manual_seed(0)
    query, passage = (torch.randn(count, 768, generator=generator) for count in (rows, 2 * rows))
    for size in (1.0, 300.0, 3e5):  # scores of 1e4 to 3e9
        inputs = query * size, passage
        result = contrastive_loss_and_grad(*inputs, scale=100.0, symmetric=symmetric, implementation=implementation)
        assert all(part.isfinite().all() for part in result[:4])
        exact = oracle(*inputs, scale=100.0, symmetric=symmetric)
        assert relative_error(result.loss, exact.loss) < 1e-5


@pytest.mark.parametrize("kind", ["random", "trained", "low rank", "dominated", "equal"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0, 100.0])
@pytest.mark.parametrize("rows", [33, 67])
def test_float32_gradients_are_within_two_millionths(implementation, oracle, draw, kind, scale, rows):
    """Of the norm; where terms of the size of scale / N cancel out in every row, of theirs."""
    query, passage = draw(kind, rows, 70, 48)
    target = last_target(rows, 70)
    exact = oracle(query, passage, target, scale=scale)
    result = contrastive_loss_and_grad(query, passage, target, scale=scale, implementation=implementation)
    for name in ("query_grad", "passage_grad"):
        expected = getattr(exact, name)
        error = (getattr(result, name).double() - expected).norm()
        assert error <= 2e-6 * expected.norm().clamp_min(scale / len(query) ** 0.5), name


@pytest.mark.parametrize("rows", [32, 72])  # few queries go a way of their own in csrc/cpu
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_wide_float32_scores_are_not_summed_in_one_long_chain(
    implementation, oracle, draw, relative_error, scale, rows
):
    """Its rounding grows with the width, and a gradient has it times the scale: 6e-6 here, plain torch's 2e-6."""
    query, passage = draw("trained", rows, 2 * rows, 4096)
    exact = oracle(query, passage, scale=scale)
    plain = oracle(query, passage, scale=scale, dtype=torch.float32)
    result = contrastive_loss_and_grad(query, passage, scale=scale, implementation=implementation)
    for name in exact._fields:
        allowed = 1.25 * relative_error(getattr(plain, name), getattr(exact, name)) + 3e-7
        assert relative_error(getattr(result, name), getattr(exact, name)) <= allowed, name


def test_a_query_with_nothing_but_duplicates_of_its_target_learns_nothing(implementation, draw):
    result = contrastive_loss_and_grad(
        *draw("random", 9, 18, 16), scale=50.0, passage_id=torch.full((18,), 7), implementation=implementation
    )
    assert result.loss == 0
    assert not result.query_grad.any()
    assert not result.passage_grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_half_precision_accumulates_in_float32(
    implementation, oracle, draw, relative_error, rounding_of, dtype, kind, scale
):
    query, passage = draw(kind, 33, 70, 48, dtype)
    target = last_target(33, 70)
    exact = oracle(query, passage, target, scale=scale)
    result = contrastive_loss_and_grad(query, passage, target, scale=scale, implementation=implementation)
    plain = oracle(query.float(), passage.float(), target, scale=scale, dtype=torch.float32)
    for name in exact._fields:
        allowed = 1.25 * relative_error(getattr(plain, name), getattr(exact, name)) + tolerance(kind, scale)
        if name in ("query_grad", "passage_grad"):
            allowed += rounding_of(implementation, dtype)
        assert relative_error(getattr(result, name), getattr(exact, name)) <= allowed, name


@pytest.mark.parametrize("shape", [(33, 70, 48), (64, 300, 256)])
@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0, 100.0])
def test_bfloat16_gradients_are_within_twice_the_rounding_of_the_inputs(
    implementation, oracle, draw, relative_error, shape, kind, scale
):
    """Against the inputs before they were rounded; and no worse than plain torch, whose scores are bfloat16."""
    query, passage = draw(kind, *shape, torch.float64)
    target = last_target(*shape[:2])
    true = oracle(query, passage, target, scale=scale)
    query, passage = query.bfloat16(), passage.bfloat16()
    rounded = oracle(query, passage, target, scale=scale)
    plain = oracle(query, passage, target, scale=scale, dtype=torch.bfloat16)
    result = contrastive_loss_and_grad(query, passage, target, scale=scale, implementation=implementation)
    for name in ("query_grad", "passage_grad"):
        actual, expected = getattr(result, name), getattr(true, name)
        assert relative_error(actual, expected) <= 2 * relative_error(getattr(rounded, name), expected), name
        assert relative_error(actual, expected) <= 1.05 * relative_error(getattr(plain, name), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_autograd_returns_the_gradients_in_the_dtype_of_the_inputs(oracle, draw, relative_error, dtype):
    query, passage = draw("trained", 12, 36, 32, dtype)
    scale = torch.tensor([20.0], dtype=torch.float64, requires_grad=True)
    query.requires_grad_()
    passage.requires_grad_()
    exact = oracle(query, passage, scale=20.0)
    loss = contrastive_loss(query, passage, scale=scale)
    (3 * loss).backward()
    rounding = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert query.grad.dtype == passage.grad.dtype == dtype
    assert scale.grad.shape == (1,)
    assert relative_error(query.grad, 3 * exact.query_grad) < rounding
    assert relative_error(passage.grad, 3 * exact.passage_grad) < rounding
    assert relative_error(scale.grad, 3 * exact.scale_grad.reshape(1)) < min(rounding, 2e-5)


def test_a_tiny_loss_keeps_its_relative_precision():
    """1 - softmax at the target would be zero in float32 here; the native kernel never subtracts the two."""
    query, passage = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]])
    result = contrastive_loss_and_grad(query, passage, torch.tensor([0]), scale=28.0, implementation="native")
    expected = torch.exp(torch.tensor(-28.0, dtype=torch.float64))
    assert abs(result.loss.double() / expected - 1) < 1e-6
    assert abs(result.query_grad[0, 0].double() / (-28 * expected) - 1) < 1e-6


@pytest.mark.parametrize("gap", [60.0, 100.0, 1000.0, 30000.0])
def test_a_target_far_below_the_best_column(implementation, oracle, relative_error, gap):
    """The row's largest exponential dwarfs the target's by more than float32 can hold."""
    query = torch.tensor([[1.0, 0.5]])
    passage = torch.tensor([[0.0, 0.0], [gap, 0.0], [gap, 1.0], [-gap, 0.0]])
    target = torch.tensor([0])
    exact = oracle(query, passage, target)
    result = contrastive_loss_and_grad(query, passage, target, implementation=implementation)
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 1e-5, name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_never_gives_a_number(implementation, draw, bad):
    query, passage = draw("random", 9, 27, 16)
    query[4, 3] = bad
    result = contrastive_loss_and_grad(query, passage, implementation=implementation)
    assert not result.loss.isfinite()
    assert not result.query_grad[4].isfinite().all()
    assert not result.passage_grad.isfinite().all()
