"""Texts to vectors with a JAX encoder, on all devices of this process."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from fastdense.jax.batches import bucket, pad_sequences
from fastdense.jax.encoder import JaxRetriever, Side
from fastdense.jax.grad_cache import Params
from fastdense.jax.mesh import ROWS, WHOLE, divide_rows
from fastdense.retrieval.encode import TextTokenizer, encode_in_batches
from fastdense.retrieval.texts import Text


class TextEncoder:
    """Encodes texts without dropout; compiled once for each length of :func:`fastdense.jax.batches.bucket`.

    Args:
        encoder: the model.
        mesh: devices of this process.
        batch_size: texts of a device at a time; the last batch is filled up, and its vectors are cut.
        dimension: D, width of the vectors.
    """

    def __init__(self, encoder: JaxRetriever, mesh: Mesh, batch_size: int, dimension: int) -> None:
        self._dimension = dimension
        self._mesh = mesh
        self._rows = batch_size * mesh.size

        def encode(params: Params, inputs: dict[str, jax.Array], side: Side) -> jax.Array:
            return jax.shard_map(
                lambda params, inputs: encoder.encode(params, side, inputs, None).astype(jnp.float32),
                mesh=mesh,
                in_specs=(WHOLE, ROWS),
                out_specs=ROWS,
                check_vma=False,
            )(params, inputs)

        self._encode = jax.jit(encode, static_argnames="side")

    def __call__(
        self,
        params: Params,
        side: Side,
        tokenize: TextTokenizer,
        texts: Sequence[Text],
        on_batch: Callable[[int], object] | None = None,
    ) -> NDArray[np.float32]:
        """Vectors [len(texts), D] in the order of ``texts``; ``on_batch`` and errors as in
        :func:`fastdense.retrieval.encode.encode_texts`."""

        def encode(sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
            length = bucket(max(map(len, sequences)), tokenize.max_length)
            inputs = pad_sequences(sequences, (self._rows, length), tokenize.pad_id)
            return np.asarray(self._encode(params, divide_rows(inputs, self._mesh), side))[: len(sequences)]

        return encode_in_batches(
            encode, tokenize, texts, dimension=self._dimension, batch_size=self._rows, on_batch=on_batch
        )
