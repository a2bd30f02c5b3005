"""Gradient caching within a jitted step: an encoder's activations are kept for one chunk of rows at a time.

Representations first, chunk by chunk (``lax.map``); then, with their gradients, each chunk once more with its
backward pass (``lax.scan``). A chunk has one dropout key for both passes, so that they agree bit for bit.
Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Params = Any
Encode = Callable[[Params, dict[str, jax.Array], jax.Array | None], jax.Array]
"""``encode(params, inputs [R, L], key or None) -> [R, D]``"""


def chunk_rows(rows: int, max_rows: int) -> tuple[int, int]:
    """Number of chunks and rows of each for ``rows`` rows, evenly divided: few rows are padding, mostly none."""
    chunks = -(-rows // max_rows)
    return chunks, -(-rows // chunks)


def encode_chunks(
    encode: Encode, params: Params, inputs: dict[str, jax.Array], key: jax.Array | None, max_rows: int
) -> jax.Array:
    """The representations of ``inputs`` [B, L], [B, D], with the memory of at most ``max_rows`` rows.

    Chunk i draws its dropout from ``fold_in(key, i)``.
    """
    rows = len(inputs["input_ids"])
    chunks = jax.tree.map(lambda array: _split(array, max_rows, "wrap"), inputs)
    encoded = lax.map(lambda chunk: encode(params, *chunk), (chunks, _keys(key, rows, max_rows)))
    return encoded.reshape(-1, encoded.shape[-1])[:rows]


def chunk_gradients(
    encode: Encode,
    params: Params,
    inputs: dict[str, jax.Array],
    key: jax.Array | None,
    max_rows: int,
    gradient: jax.Array,
    total: Params,
) -> Params:
    """Add to ``total`` the parameters' gradient, for the gradient [B, D] of :func:`encode_chunks`'s result."""
    rows = len(inputs["input_ids"])
    chunks = jax.tree.map(lambda array: _split(array, max_rows, "wrap"), inputs)

    def add(total: Params, chunk: tuple[Any, ...]) -> tuple[Params, None]:
        chunk_inputs, chunk_key, chunk_gradient = chunk
        encoded, pullback = jax.vjp(lambda params: encode(params, chunk_inputs, chunk_key), params)
        (own,) = pullback(chunk_gradient.astype(encoded.dtype))
        return jax.tree.map(jnp.add, total, own), None

    # Rows that a chunk repeats for its shape have no gradient.
    gradients = _split(gradient, max_rows, "constant")
    return lax.scan(add, total, (chunks, _keys(key, rows, max_rows), gradients))[0]


def _split(array: jax.Array, max_rows: int, padding: str) -> jax.Array:
    """[B, ...] to [chunks, rows, ...]."""
    chunks, rows = chunk_rows(len(array), max_rows)
    missing = [(0, chunks * rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, missing, mode=padding).reshape(chunks, rows, *array.shape[1:])


def _keys(key: jax.Array | None, rows: int, max_rows: int) -> jax.Array | None:
    if key is None:
        return None
    chunks, _ = chunk_rows(rows, max_rows)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(chunks))
