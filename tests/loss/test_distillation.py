"""The divergence from a teacher against its plain form, a query at a time in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastdense.loss.distillation import distillation_loss_and_grad

COUNTS, WIDTH = (3, 1, 4, 2), 12
ABSENT = -torch.inf


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    query, passage, scores = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, WIDTH), (11, WIDTH), (4, 4))
    )
    for row, count in enumerate(COUNTS):
        scores[row, count:] = ABSENT
    # The groups need not lie in the order of the queries, nor side by side.
    return {"query": query, "passage": passage, "target": torch.tensor([6, 10, 0, 4]), "teacher_score": 3 * scores}


def plain(
    query, passage, target, teacher_score, *, dims=(WIDTH,), weights=(1.0,), renormalize=False, scale, temperature
):
    leaves = [query.clone().requires_grad_(), passage.clone().requires_grad_()]
    total = 0
    for dim, weight in zip(dims, weights, strict=True):
        q, p = (F.normalize(x[:, :dim], dim=1) if renormalize else x[:, :dim] for x in leaves)
        for i, (start, count) in enumerate(zip(target.tolist(), COUNTS, strict=True)):
            student = (scale * p[start : start + count] @ q[i]).log_softmax(0)
            teacher = (teacher_score[i, :count] / temperature).softmax(0)
            total = total + weight * F.kl_div(student, teacher, reduction="sum") / len(query)
    return total.detach(), *torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("dims", "weights"), [((WIDTH,), (1.0,)), ((12, 5, 2), (1.0, 0.5, 2.0))])
def test_it_equals_its_plain_form(problem, renormalize, dims, weights):
    settings = {"renormalize": renormalize, "scale": 2.5, "temperature": 1.7, "dims": dims}
    result = distillation_loss_and_grad(**problem, **settings, dim_weights=weights)
    for mine, theirs in zip(result, plain(**problem, **settings, weights=weights), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert result.query_grad[1].abs().max() < 1e-12  # one passage leaves nothing to choose


def test_it_is_what_others_call_kl_divergence(problem):
    """On rows of as many passages each: ``F.kl_div`` as in sentence-transformers' DistillKLDivLoss."""
    query, passage = problem["query"][:3], problem["passage"][:9]
    scores = torch.randn(3, 3, dtype=torch.float64)
    found = (passage.view(3, 3, WIDTH) @ query[:, :, None]).squeeze(2)
    expected = F.kl_div((2.0 * found).log_softmax(1), (scores / 0.5).softmax(1), reduction="batchmean")
    target = torch.tensor([0, 3, 6])
    result = distillation_loss_and_grad(query, passage, target, scores, scale=2.0, temperature=0.5)
    torch.testing.assert_close(result.loss, expected)


def test_a_student_that_scores_like_its_teacher_has_nothing_to_learn(problem):
    rows = (problem["target"][:, None] + torch.arange(4)).clamp(max=10)
    found = (problem["passage"][rows] @ problem["query"][:, :, None]).squeeze(2)
    teacher = found.masked_fill(problem["teacher_score"] == ABSENT, ABSENT)
    result = distillation_loss_and_grad(**{**problem, "teacher_score": teacher}, scale=0.5, temperature=2.0)
    assert max(part.abs().max() for part in result) < 1e-12


def test_half_precision_is_summed_in_float32(problem):
    inputs = {**problem, "query": problem["query"].bfloat16(), "passage": problem["passage"].bfloat16()}
    result = distillation_loss_and_grad(**inputs, scale=2.0)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    expected = plain(**exact, scale=2.0, temperature=1.0)
    assert result.passage_grad.dtype == torch.float32
    torch.testing.assert_close(result.passage_grad.double(), expected[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.zeros(4)}, "target must have an integer dtype"),
        ({"passage": torch.zeros(11, 12, dtype=torch.bfloat16)}, "one dtype"),
    ],
)
def test_bad_types_are_named(problem, changes, message):
    with pytest.raises(TypeError, match=message):
        distillation_loss_and_grad(**{**problem, **changes})


def test_no_queries_have_nothing_to_learn():
    none = torch.zeros(0, 12), torch.zeros(5, 12), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)
    result = distillation_loss_and_grad(*none)
    assert result.loss == 0
    assert result.passage_grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passage": torch.zeros(11, 3)}, r"\[N, D\] and \[M, D\], got \[4, 12\] and \[11, 3\]"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target must be \[4\]"),
        ({"teacher_score": torch.zeros(3, 4)}, r"teacher_score must be \[4, K\], got \[3, 4\]"),
        ({"temperature": 0.0}, "temperature must be finite and greater than 0"),
        ({"dims": [4, 4]}, "none twice"),
        ({"dims": [768]}, "768 dimensions is longer than the representations, which have 12"),
        ({"scale": -1.0}, "scale .* greater than 0"),
        ({"target": torch.tensor([0, 3, 6, 11])}, r"target must lie in \[0, 11\), got values from 0 to 1"),
        ({"teacher_score": torch.full((4, 4), ABSENT)}, "a finite score in every row, got none in row 0"),
    ],
)
def test_bad_arguments_are_named(problem, changes, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss_and_grad(**{**problem, **changes})
