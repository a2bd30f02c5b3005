"""Every option of the loss, alone and together, against the formula written out."""

import pytest
import torch

from fastdense import ContrastiveLoss, contrastive_loss, contrastive_loss_and_grad

OPTIONS = {
    "plain": {},
    "any target": {"target": "some"},
    "ids": {"passage_id": "some"},
    "ids and any target": {"passage_id": "some", "target": "some"},
    "weight": {"weight": "some"},
    "sum": {"reduction": "sum"},
    "weighted sum": {"reduction": "sum", "weight": "some"},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing over ids": {"label_smoothing": 0.3, "passage_id": "some"},
    "symmetric": {"symmetric": True},
    "symmetric with one target twice": {"symmetric": True, "target": "some"},
    "all": {
        "symmetric": True,
        "target": "some",
        "passage_id": "some",
        "weight": "some",
        "label_smoothing": 0.2,
        "reduction": "sum",
    },
}


def options(choice, rows, columns):
    drawn = {
        "target": (torch.arange(rows) * 5) % (columns // 2),
        "passage_id": torch.arange(columns) % (columns // 3),
        "weight": torch.arange(rows) % 4 * 0.5,
    }
    return {name: drawn[name] if value == "some" else value for name, value in choice.items()}


@pytest.mark.parametrize("rows", [21, 39, 70])  # up to 64 queries go a way of their own in csrc/cpu, 32 at a time
@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("chunk_bytes", [1, 2000, None])
def test_options(implementation, oracle, draw, relative_error, choice, chunk_bytes, rows):
    query, passage = draw("trained", rows, 3 * rows, 24)
    chosen = options(choice, rows, 3 * rows)
    exact = oracle(query, passage, scale=9.0, **chosen)
    result = contrastive_loss_and_grad(
        query, passage, scale=9.0, implementation=implementation, chunk_bytes=chunk_bytes, **chosen
    )
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name


@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
def test_autograd_gives_the_direct_gradients(implementation, draw, choice):
    query, passage = draw("trained", 21, 63, 24)
    scale = torch.tensor(9.0)
    chosen = options(choice, 21, 63)
    result = contrastive_loss_and_grad(query, passage, scale=scale, implementation=implementation, **chosen)
    for tensor in (query, passage, scale):
        tensor.requires_grad_()
    loss = contrastive_loss(query, passage, scale=scale, implementation=implementation, **chosen)
    loss.backward()
    torch.testing.assert_close(loss.detach(), result.loss)
    torch.testing.assert_close(query.grad, result.query_grad)
    torch.testing.assert_close(passage.grad, result.passage_grad)
    torch.testing.assert_close(scale.grad, result.scale_grad)


def test_by_products(implementation, draw):
    query, passage = draw("trained", 20, 60, 24, torch.float64)
    passage_id = torch.arange(60) % 25
    result = contrastive_loss_and_grad(
        query.float(), passage.float(), scale=5.0, passage_id=passage_id, implementation=implementation
    )
    target = torch.arange(20) * 3
    score = 5 * query @ passage.T
    score[(passage_id == passage_id[target][:, None]) & (torch.arange(60) != target[:, None])] = -torch.inf
    torch.testing.assert_close(result.log_normalizer.double(), score.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.target_score.double(), score[range(20), target], rtol=1e-5, atol=1e-5)
    assert result.correct.tolist() == (score.argmax(1) == target).tolist()
    assert 0 < result.correct.sum() < 20


def test_a_tie_is_not_correct(implementation):
    """A model that gives every passage the same vector has accuracy zero."""
    result = contrastive_loss_and_grad(torch.ones(4, 8), torch.ones(8, 8), implementation=implementation)
    assert not result.correct.any()
    assert result.loss.item() == pytest.approx(torch.tensor(8.0).log().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ids_that_leave_only_the_target(implementation, draw, smoothing, scale):
    query, passage = draw("random", 6, 18, 16)
    result = contrastive_loss_and_grad(
        query,
        passage,
        scale=scale,
        passage_id=torch.full((18,), -3),
        label_smoothing=smoothing,
        implementation=implementation,
    )
    assert result.correct.all()
    for value in (result.loss, result.query_grad, result.passage_grad, result.scale_grad):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6 * scale)


def test_a_masked_column_gets_no_gradient(implementation, draw):
    """Its score is the highest by far, so a mask that comes too late would show."""
    query, passage = draw("random", 1, 20, 16)
    passage[7] = 50 * query[0]
    passage_id = torch.arange(20)
    passage_id[7] = passage_id[0]
    result = contrastive_loss_and_grad(
        query, passage, torch.tensor([0]), passage_id=passage_id, implementation=implementation
    )
    assert result.passage_grad[7].count_nonzero() == 0
    assert result.log_normalizer < 5


def test_rows_of_weight_zero_do_not_count(implementation, draw):
    query, passage = draw("random", 10, 10, 16)
    weight = torch.tensor([1.0] * 6 + [0.0] * 4)
    whole = contrastive_loss_and_grad(query, passage, weight=weight, implementation=implementation)
    part = contrastive_loss_and_grad(query[:6], passage, torch.arange(6), implementation=implementation)
    torch.testing.assert_close(whole.loss, part.loss)
    torch.testing.assert_close(whole.passage_grad, part.passage_grad)
    assert whole.query_grad[6:].count_nonzero() == 0


def test_no_weight_at_all_gives_zero(implementation, draw):
    query, passage = draw("random", 4, 8, 16)
    result = contrastive_loss_and_grad(query, passage, weight=torch.zeros(4), implementation=implementation)
    assert result.loss == 0
    assert result.query_grad.count_nonzero() == 0
    assert result.passage_grad.count_nonzero() == 0


@pytest.mark.parametrize("columns", [0, 5])
@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_queries(implementation, columns, width, symmetric):
    result = contrastive_loss_and_grad(
        torch.ones(0, width), torch.ones(columns, width), symmetric=symmetric, implementation=implementation
    )
    assert result.loss == 0
    assert result.query_grad.shape == (0, width)
    assert result.passage_grad.shape == (columns, width)
    assert result.passage_grad.count_nonzero() == 0
    assert result.correct.shape == (0,)


def test_no_width(implementation):
    result = contrastive_loss_and_grad(torch.ones(2, 0), torch.ones(4, 0), implementation=implementation)
    assert result.loss.item() == pytest.approx(torch.tensor(4.0).log().item())
    smoothed = contrastive_loss_and_grad(
        torch.ones(2, 0), torch.ones(4, 0), label_smoothing=0.1, implementation=implementation
    )
    assert smoothed.loss.item() == pytest.approx(result.loss.item())


def test_only_the_ratio_of_weights_counts(implementation, draw):
    """Whose sum may exceed float32."""
    query, passage = draw("trained", 6, 12, 8)
    weight = torch.tensor([1.0, 2, 1, 2, 1, 0])
    expected = contrastive_loss_and_grad(query, passage, weight=weight, implementation=implementation)
    for factor in (1e-30, 1.5e38):
        result = contrastive_loss_and_grad(query, passage, weight=weight * factor, implementation=implementation)
        for name in ("loss", "query_grad", "passage_grad"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-5, atol=1e-7)


def test_module_with_a_learnable_scale_trains_it(draw):
    query, passage = draw("trained", 8, 16, 24)
    module = ContrastiveLoss(20.0, learnable=True, label_smoothing=0.1)
    module(query, passage).backward()
    expected = contrastive_loss_and_grad(query, passage, scale=20.0, label_smoothing=0.1)
    torch.testing.assert_close(module.log_scale.grad, expected.scale_grad * 20)
    assert [name for name, _ in module.named_parameters()] == ["log_scale"]
    assert "scale=20, learnable=True" in repr(module)


def test_module_with_a_fixed_scale_has_no_parameters(draw):
    query, passage = draw("trained", 8, 16, 24)
    module = ContrastiveLoss(20.0, symmetric=True, reduction="sum")
    expected = contrastive_loss(query, passage, scale=20.0, symmetric=True, reduction="sum")
    torch.testing.assert_close(module(query, passage), expected)
    assert list(module.parameters()) == []
    assert "scale=20" in repr(module)
