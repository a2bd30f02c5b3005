"""The hardest negatives of each query: what a sort of all scores would give, without all scores."""

import pytest
import torch

from fastdense import contrastive_loss_and_grad
from fastdense.loss.extras import hardest_negatives


def sorted_negatives(query, passage, target, scale, passage_id, count):
    """Columns and scores by a sort in float64; -1 and -inf where a row has no more."""
    score = scale * query.double() @ passage.double().T
    out = torch.zeros_like(score, dtype=torch.bool)
    if passage_id is not None:
        out = passage_id[None, :] == passage_id[target][:, None]
    out[torch.arange(len(target)), target] = True
    score = score.masked_fill(out, -torch.inf)
    score, index = score.sort(dim=1, descending=True, stable=True)
    return index.where(score > -torch.inf, -1)[:, :count], score[:, :count]


def check(result, expected):
    index, score = expected
    assert torch.equal(result[0], index)
    torch.testing.assert_close(result[1].double(), score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 100_000, None])
@pytest.mark.parametrize("kind", ["random", "raw"])  # raw: targets far below others, scored twice
@pytest.mark.parametrize("rows", [5, 70])
def test_against_a_sort(implementation, draw, symmetric, chunk_bytes, kind, rows):
    query, passage = draw(kind, rows, 500, 24)
    target, ids = (torch.arange(rows) * 17 + 3) % 500, torch.arange(500) % 230
    expected = sorted_negatives(query, passage, target, 3.0, ids, 7)
    result = contrastive_loss_and_grad(
        query, passage, target, scale=3.0, passage_id=ids, symmetric=symmetric, hardest=7,
        implementation=implementation, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    check((result.hardest_index, result.hardest_score), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_and_threads(draw, dtype):
    query, passage = draw("trained", 100, 700, 40, dtype)
    target = torch.arange(100)
    expected = sorted_negatives(query, passage, target, 20.0, None, 20)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            result = contrastive_loss_and_grad(query, passage, target, scale=20.0, hardest=20, implementation="native")
            check((result.hardest_index, result.hardest_score), expected)
    finally:
        torch.set_num_threads(before)


def test_the_rest_of_the_result_is_the_same(implementation, draw):
    query, passage = draw("trained", 40, 120, 24)
    plain = contrastive_loss_and_grad(query, passage, scale=9.0, implementation=implementation)
    asked = contrastive_loss_and_grad(query, passage, scale=9.0, hardest=3, implementation=implementation)
    assert all(torch.equal(one, other) for one, other in zip(plain[:7], asked[:7], strict=True))
    assert plain.hardest_index.shape == plain.hardest_score.shape == (40, 0)


@pytest.mark.parametrize("count", [3, 9])
def test_fewer_negatives_than_asked_for(implementation, draw, count):
    query, passage = draw("random", 3, 6, 8)
    ids = torch.tensor([0, 1, 0, 0, 2, 0])
    expected = sorted_negatives(query, passage, torch.tensor([0, 1, 4]), 1.0, ids, 9)
    result = contrastive_loss_and_grad(
        query, passage, torch.tensor([0, 1, 4]), passage_id=ids, hardest=count, implementation=implementation
    )
    assert result.hardest_index.shape == (3, count)
    width = min(count, 6)
    check((result.hardest_index[:, :width], result.hardest_score[:, :width]), [part[:, :width] for part in expected])
    assert (result.hardest_index[:, width:] == -1).all()
    assert (result.hardest_score[:, width:] == -torch.inf).all()


def test_equal_scores_come_in_the_order_of_their_columns():
    result = contrastive_loss_and_grad(torch.ones(40, 8), torch.ones(400, 8), hardest=4, implementation="native")
    assert result.hardest_index[0].tolist() == [1, 2, 3, 4]
    assert result.hardest_index[39].tolist() == [0, 1, 2, 3]


def test_no_queries(implementation):
    result = contrastive_loss_and_grad(torch.ones(0, 8), torch.ones(5, 8), hardest=2, implementation=implementation)
    assert result.hardest_index.shape == result.hardest_score.shape == (0, 2)


@pytest.mark.parametrize("ids", [None, torch.arange(90) % 40])
def test_by_a_pass_of_its_own(draw, ids):
    query, passage = draw("random", 30, 90, 24)
    target = torch.arange(30) * 2
    expected = sorted_negatives(query, passage, target, 4.0, ids, 5)
    for chunk_bytes in (1, 2**20):
        check(hardest_negatives(query, passage, target, torch.tensor(4.0), ids, 5, chunk_bytes), expected)


@pytest.mark.parametrize("bad", [-1, 2.0, True])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="hardest must be a number of negatives, 0 or more, got"):
        contrastive_loss_and_grad(torch.ones(2, 4), torch.ones(2, 4), hardest=bad)
