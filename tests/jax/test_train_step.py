"""One step: gradients do not depend on how many devices there are, on chunks, or on padding."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdense.jax.batches import Batch
from fastdense.jax.encoder import JaxRetriever
from fastdense.jax.mesh import divide_rows, make_mesh, replicate
from fastdense.jax.train_step import GradientStep, Moment, StepSettings, Tally
from fastdense.modeling.load import load_retriever

QUERIES, PASSAGES = 16, 32


@pytest.fixture(scope="module")
def exact(shallow_bert_no_dropout_dir: Path) -> JaxRetriever:
    return JaxRetriever.from_torch(load_retriever(shallow_bert_no_dropout_dir))


@pytest.fixture(scope="module")
def noisy(shallow_bert_dir: Path) -> JaxRetriever:
    return JaxRetriever.from_torch(load_retriever(shallow_bert_dir))


def batch(queries: int = QUERIES, passages: int = PASSAGES, seed: int = 0) -> Batch:
    """Random rows; the last query and the last passages are padding where there are fewer than given."""
    rng = np.random.default_rng(seed)

    def inputs(rows: int, length: int) -> dict[str, np.ndarray]:
        lengths = rng.integers(2, length + 1, (rows, 1))
        mask = (np.arange(length) < lengths).astype(np.int32)
        return {"input_ids": rng.integers(5, 100, (rows, length), np.int32), "attention_mask": mask}

    return Batch(
        query=inputs(QUERIES, 6),
        passage=inputs(PASSAGES, 9),
        target=(np.arange(QUERIES, dtype=np.int32) * 2) % passages,
        weight=(np.arange(QUERIES) < queries).astype(np.float32),
        passage_id=np.stack([np.arange(PASSAGES) // 3, np.ones(PASSAGES)], axis=1).astype(np.int32),
        is_passage=np.arange(PASSAGES) < passages,
    )


gradient_step = functools.cache(GradientStep)  # compiled for all tests of a kind


def gradients(
    encoder: JaxRetriever, rows: Batch, devices: int = 8, seed: int = 3, step: int = 4, **settings: Any
) -> tuple[float, float, Any]:
    """Loss, accuracy and gradients of one step."""
    mesh = make_mesh(jax.devices()[:devices])
    take = gradient_step(encoder, StepSettings(**{"scale": 5.0, "label_smoothing": 0.1, **settings}), mesh)
    moment = Moment(np.uint32(seed), np.int32(step), np.int32(0), np.float32(1))
    tally = replicate(Tally(np.float32(0), np.float32(0)), mesh)
    tally, total = take(replicate(encoder.params, mesh), divide_rows(rows, mesh), moment, tally, None)
    return float(tally.loss), float(tally.accuracy), jax.tree.map(np.asarray, total)


def assert_equal(one: tuple[float, float, Any], other: tuple[float, float, Any]) -> None:
    assert one[:2] == pytest.approx(other[:2], rel=1e-5)
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(other[2]))))
    assert norm > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * norm), one[2], other[2])


def test_eight_devices_are_one(exact: JaxRetriever) -> None:
    eight, one = (gradients(exact, batch(), devices, mask_duplicates=True) for devices in (8, 1))
    assert_equal(eight, one)


def test_cached_is_plain(exact: JaxRetriever) -> None:
    cached = gradients(exact, batch(), chunk_rows=(1, 3), mask_duplicates=True)
    assert_equal(cached, gradients(exact, batch(), mask_duplicates=True))


def test_one_chunk_with_dropout_is_the_plain_step(noisy: JaxRetriever) -> None:
    plain = gradients(noisy, batch())
    assert_equal(gradients(noisy, batch(), chunk_rows=(2, 4)), plain)
    for other in ({"seed": 2**32 - 1}, {"step": 5}):
        assert plain[0] != pytest.approx(gradients(noisy, batch(), **other)[0], rel=1e-5)


def test_padding_does_not_count(exact: JaxRetriever) -> None:
    """Rows that only fill up give the loss and gradients of a batch without them."""
    rows = batch(queries=8, passages=16)
    fewer = jax.tree.map(lambda array: array[: len(array) // 2], rows)
    assert_equal(gradients(exact, rows, mask_duplicates=True), gradients(exact, fewer, mask_duplicates=True))
