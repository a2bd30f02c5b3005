"""Columns that are no passages: the loss is the one without them, by every implementation and in both directions."""

from typing import Any

import jax
import numpy as np
import pytest

from fastdense.jax import pallas
from fastdense.jax.loss import contrastive_loss_and_grad

ask = jax.jit(contrastive_loss_and_grad, static_argnames=("label_smoothing", "symmetric", "implementation"))
REAL = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0], bool)


@pytest.fixture(params=["xla", "pallas"])
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """For each form in turn; the kernels run in Pallas' interpreter."""
    monkeypatch.setattr(pallas, "INTERPRET", True)
    return {"symmetric": True, "scale": 1.5, "label_smoothing": 0.2, "implementation": request.param}


def draw() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 8), np.float32), rng.standard_normal((12, 8), np.float32)


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("with_ids", [False, True])
def test_padding_takes_no_part(options: dict[str, Any], with_ids: bool) -> None:
    query, passage = draw()
    places = np.flatnonzero(REAL)
    target, ids = np.array([0, 3, 2, 3, 1]), (np.arange(12) // 3 if with_ids else None)

    found = ask(query, passage, places[target], passage_id=ids, is_passage=REAL, **options)
    few = None if ids is None else ids[REAL]
    expected = ask(query, passage[REAL], target, passage_id=few, **options)
    assert not np.asarray(found.passage_grad)[~REAL].any()
    assert_same(found._replace(passage_grad=found.passage_grad[places]), expected)


def test_a_mask_that_hides_nothing_changes_nothing(options: dict[str, Any]) -> None:
    """Queries with one target stay each other's negatives."""
    query, passage = draw()
    target = np.array([0, 0, 1, 2, 11])
    found = ask(query, passage, target, is_passage=np.ones(12, bool), **options)
    assert_same(found, ask(query, passage, target, **options))


def test_a_query_whose_target_is_padding_is_no_negative(options: dict[str, Any]) -> None:
    query, passage = draw()
    fixed = {**options, "is_passage": REAL}
    target, weight = np.array([0, 0, 5, 7, 11]), np.array([1, 1, 1, 1, 0], np.float32)
    found = ask(query, passage, target, weight=weight, **fixed)
    expected = ask(query[:4], passage, target[:4], **fixed)
    assert_same((found.loss, found.query_grad[:4], found.passage_grad), expected[:3])
    assert not np.asarray(found.query_grad)[4].any()
