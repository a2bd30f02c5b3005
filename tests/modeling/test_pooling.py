"""Pooling against a plain loop over the rows."""

import pytest
import torch

from fastdense.modeling.pooling import pool

MASKS = {
    "right": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
    "left": [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]],
}


def expected(hidden, mask, pooling):
    rows = [states[real.bool()] for states, real in zip(hidden, mask, strict=True)]
    pick = {"cls": lambda r: r[0], "last": lambda r: r[-1], "mean": lambda r: r.mean(dim=0)}[pooling]
    return torch.stack([pick(row) for row in rows])


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_pool(pooling, padding, mask_dtype):
    mask = torch.tensor(MASKS[padding]).to(mask_dtype)
    hidden = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(pool(hidden, mask, pooling), expected(hidden, mask, pooling))
    assert torch.autograd.gradcheck(lambda states: pool(states, mask, pooling), hidden)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_an_empty_text_gives_a_finite_vector(pooling):
    assert pool(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), pooling).isfinite().all()


def test_means_are_summed_in_float32():
    """In half precision, a long sum would overflow."""
    hidden = torch.full((1, 70, 2), 1000, dtype=torch.float16)
    vector = pool(hidden, torch.ones(1, 70, dtype=torch.long), "mean")
    assert torch.equal(vector, torch.full((1, 2), 1000, dtype=torch.float16))


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, last, not 'max'"):
        pool(torch.zeros(1, 2, 3), torch.ones(1, 2), "max")
