"""Gradient caching: representations and gradients of a cached step are those of the whole batch at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdense.jax.grad_cache import chunk_gradients, chunk_rows, encode_chunks

VOCABULARY, WIDTH, LENGTH = 11, 6, 4


def encode(params, inputs, key):
    """A bag of words with dropout and a nonlinear layer."""
    words = params["words"][inputs["input_ids"]]
    if key is not None:
        words = jnp.where(jax.random.bernoulli(key, 0.7, words.shape), words / 0.7, 0)
    return jnp.tanh((words * inputs["attention_mask"][..., None]).sum(axis=1) @ params["layer"])


def problem(rows: int):
    rng = np.random.default_rng(rows)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    params = {"words": normal(VOCABULARY, WIDTH), "layer": normal(WIDTH, 3)}
    inputs = {
        "input_ids": jnp.asarray(rng.integers(0, VOCABULARY, (rows, LENGTH), np.int32)),
        "attention_mask": jnp.asarray(rng.random((rows, LENGTH)) < 0.8, jnp.int32),
    }
    return params, inputs, normal(rows, 3)


def at_once(params, inputs, key, max_rows: int):
    """All chunks with their keys, as one differentiable function."""
    rows = len(inputs["input_ids"])
    chunks, size = chunk_rows(rows, max_rows)
    wrapped = jax.tree.map(lambda array: array[np.arange(chunks * size) % rows], inputs)
    parts = []
    for i in range(chunks):
        part = {name: array[i * size : (i + 1) * size] for name, array in wrapped.items()}
        parts.append(encode(params, part, None if key is None else jax.random.fold_in(key, i)))
    return jnp.concatenate(parts)[:rows]


@pytest.mark.parametrize(("rows", "max_rows", "dropout"), [(1, 1, True), (7, 3, True), (8, 4, False), (3, 9, True)])
def test_cached_is_uncached(rows: int, max_rows: int, dropout: bool) -> None:
    params, inputs, gradient = problem(rows)
    key = jax.random.key(7) if dropout else None
    found = jax.jit(lambda p: encode_chunks(encode, p, inputs, key, max_rows))(params)
    expected, pullback = jax.vjp(jax.jit(lambda p: at_once(p, inputs, key, max_rows)), params)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    zeros = jax.tree.map(jnp.zeros_like, params)
    total = jax.jit(lambda p: chunk_gradients(encode, p, inputs, key, max_rows, gradient, zeros))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), total, pullback(gradient)[0])


@given(st.integers(1, 200), st.integers(1, 200))
def test_chunks_are_even_and_no_larger_than_allowed(rows: int, max_rows: int) -> None:
    chunks, size = chunk_rows(rows, max_rows)
    assert 1 <= size <= max_rows
    assert rows <= chunks * size < rows + chunks


def test_gradients_are_added() -> None:
    params, inputs, gradient = problem(5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    once = chunk_gradients(encode, params, inputs, None, 2, gradient, zeros)
    twice = chunk_gradients(encode, params, inputs, None, 2, gradient, once)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-5, atol=1e-6), twice, once)
