"""Matryoshka losses and false-negative filters against their plain forms, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastdense.loss import contrastive_loss_and_grad
from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.loss.prefix_walk import prefix_loss_and_grad

ROWS, COLUMNS, WIDTH = 7, 15, 12


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    query, passage = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (ROWS, COLUMNS))
    target = torch.tensor([3, 3, 0, 14, 7, 8, 1])
    passage[target] += query  # positives that some columns outscore, and some do not
    return {"query": query, "passage": passage, "target": target, "passage_id": torch.arange(COLUMNS) % 9}


def plain(query, passage, target, passage_id, *, dims, weights, renormalize, scale, smoothing=0.0, drop=None):
    """Loss and gradients by autograd, with [N, M] matrices."""
    leaves = [query.clone().requires_grad_(), passage.clone().requires_grad_()]
    scale = torch.tensor(scale, dtype=query.dtype, requires_grad=True)
    total = 0
    for dim, weight in zip(dims, weights, strict=True):
        q, p = (F.normalize(x[:, :dim], dim=1) if renormalize else x[:, :dim] for x in leaves)
        similarity = q @ p.T
        own = F.one_hot(target, len(passage)).bool()
        left_out = (passage_id == passage_id[target][:, None]) & ~own
        if drop is not None:
            left_out = left_out | (drop(similarity, similarity[own][:, None]) & ~own)
        log_probability = (similarity * scale).masked_fill(left_out, -torch.inf).log_softmax(1)
        spread = log_probability.masked_fill(left_out, 0).sum(1) / (~left_out).sum(1)
        row = -(1 - smoothing) * log_probability[own] - smoothing * spread
        total = total + weight * row.mean()
    return total.detach(), *torch.autograd.grad(total, [*leaves, scale])


def assert_same(result, expected):
    actual = (result.loss, result.query_grad, result.passage_grad, result.scale_grad)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("dims", "weights"), [([12, 5, 2], [1.0, 0.5, 2.0]), ([4, 9], [1.0, 1.0]), ([12], [1.0]), ([1, 12], [0.0, 1.0])]
)
@pytest.mark.parametrize("chunk_bytes", [1, None])
def test_prefixes_equal_the_sum_of_their_losses(problem, renormalize, dims, weights, chunk_bytes):
    options = {"scale": 2.5, "renormalize": renormalize}
    result = prefix_loss_and_grad(
        **problem, dims=dims, dim_weights=weights, label_smoothing=0.1, chunk_bytes=chunk_bytes, **options
    )
    assert_same(result, plain(**problem, dims=dims, weights=weights, smoothing=0.1, **options))
    cut = F.normalize if renormalize else (lambda x: x)
    longest = (cut(problem[side][:, : max(dims)]) for side in ("query", "passage"))
    others = {"target": problem["target"], "passage_id": problem["passage_id"], "scale": 2.5}
    expected = contrastive_loss_and_grad(*longest, **others, implementation="reference")
    for name in ("log_normalizer", "target_score", "correct"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("absolute", "relative"), [(0.0, None), (-0.2, None), (0.3, None), (None, 0.05), (None, -0.1), (0.1, 0.2)]
)
def test_filter_equals_its_plain_form(problem, renormalize, absolute, relative):
    def drop(s, own):
        out = torch.zeros_like(s, dtype=torch.bool)
        out |= s > own - absolute if absolute is not None else out
        return out | (s > own - relative * own.abs()) if relative is not None else out

    settings = {"dims": [3, 12], "renormalize": renormalize, "scale": 3.0}
    rules = FalseNegativeFilter(absolute, relative)
    result = prefix_loss_and_grad(**problem, **settings, false_negatives=rules, chunk_bytes=1)
    expected = plain(**problem, **settings, weights=[1, 1], drop=drop)
    assert_same(result, expected)
    assert not torch.isclose(result.loss, plain(**problem, **settings, weights=[1, 1])[0])  # something was left out


def test_guide_s_scores_decide_in_the_place_of_the_model_s(problem):
    guide = tuple(torch.randn(n, 5, dtype=torch.float64) for n in (ROWS, COLUMNS))
    scores = guide[0] @ guide[1].T
    settings = {"dims": [3, 12], "scale": 3.0, "renormalize": True}
    result = prefix_loss_and_grad(
        **problem, **settings, false_negatives=FalseNegativeFilter(0.1), guide=guide, chunk_bytes=1
    )
    limit = scores.gather(1, problem["target"][:, None]) - 0.1
    assert_same(result, plain(**problem, **settings, weights=[1, 1], drop=lambda *_: scores > limit))


def test_accuracy_counts_what_the_filter_leaves_out(problem):
    filtered = prefix_loss_and_grad(**problem, false_negatives=FalseNegativeFilter(0.0))
    full = contrastive_loss_and_grad(**problem, implementation="reference")
    assert torch.equal(filtered.correct, full.correct)
    assert not full.correct.all()


def test_half_precision_is_summed_in_float32(problem):
    inputs = {**problem, "query": problem["query"].bfloat16(), "passage": problem["passage"].bfloat16()}
    settings = {"dims": [4, 12], "renormalize": True, "scale": 2.0}
    result = prefix_loss_and_grad(**inputs, **settings)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    expected = plain(**exact, **settings, weights=[1, 1])
    assert result.query_grad.dtype == torch.float32
    torch.testing.assert_close(result.query_grad.double(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": [13]}, "13 dimensions is longer than the representations, which have 12"),
        ({"dims": [4, 4]}, "none twice"),
        ({"dims": [0]}, "positive whole numbers"),
        ({"dims": [4], "dim_weights": [1.0, 2.0]}, "one weight for each dimension, got 2 for 1"),
        ({"dims": [4], "dim_weights": [-1.0]}, "not negative"),
        ({"guide": (torch.zeros(7, 2), torch.zeros(15, 2))}, "guide is for false_negatives"),
        (
            {"guide": (torch.zeros(7, 2), torch.zeros(14, 2)), "false_negatives": FalseNegativeFilter(0.0)},
            r"got \[7, 2\] and \[14, 2\]",
        ),
    ],
)
def test_bad_arguments_are_named(problem, options, message):
    with pytest.raises(ValueError, match=message):
        prefix_loss_and_grad(**problem, **options)
