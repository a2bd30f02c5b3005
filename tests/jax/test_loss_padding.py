"""Columns that are no passages: the loss is the one without them, by every implementation."""

import jax
import numpy as np
import pytest

from fastdense.jax import pallas
from fastdense.jax.loss import contrastive_loss_and_grad


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("with_ids", [False, True])
def test_padding_takes_no_part(implementation: str, with_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallas, "INTERPRET", True)
    rng = np.random.default_rng(0)
    query, passage = (rng.standard_normal((rows, 8), np.float32) for rows in (5, 12))
    real = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0], bool)
    places = np.flatnonzero(real)
    target, ids = np.array([0, 3, 2, 5, 1]), (np.arange(12) // 3 if with_ids else None)
    options = {"scale": 1.5, "label_smoothing": 0.2, "implementation": implementation}

    found = contrastive_loss_and_grad(query, passage, places[target], passage_id=ids, is_passage=real, **options)
    few = None if ids is None else ids[real]
    expected = contrastive_loss_and_grad(query, passage[real], target, passage_id=few, **options)
    assert not np.asarray(found.passage_grad)[~real].any()
    found = found._replace(passage_grad=found.passage_grad[places])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
