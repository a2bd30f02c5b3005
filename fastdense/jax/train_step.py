"""One contrastive step on all devices: a batch's loss, accuracy and gradients, with or without the gradient cache."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fastdense.jax.batches import Batch
from fastdense.jax.encoder import JaxRetriever, Side
from fastdense.jax.grad_cache import Encode, Params, chunk_gradients, encode_chunks
from fastdense.jax.loss import contrastive_loss_and_grad
from fastdense.jax.mesh import AXIS, ROWS, WHOLE


@dataclass(frozen=True)
class StepSettings:
    """What the loss is, and how its gradients are computed.

    Attributes:
        scale: factor on the dot products, 1 / temperature.
        label_smoothing: share of the target's probability that is spread over all passages.
        mask_duplicates: leave further copies of a query's positive out of its negatives.
        chunk_rows: most (queries, passages) of a device in a chunk of the gradient cache; None for the plain step.
    """

    scale: float
    label_smoothing: float = 0.0
    mask_duplicates: bool = False
    chunk_rows: tuple[int, int] | None = None


class Moment(NamedTuple):
    """Where in which run a batch comes: all that dropout depends on, so that a resumed run repeats it."""

    seed: Any
    """uint32 []"""
    step: Any
    """int32 [], optimizer steps before"""
    part: Any
    """int32 [], batches since the last optimizer step"""
    share: Any
    """float32 [], what the batch counts in its optimizer step: 1 / batches of it"""


class Tally(NamedTuple):
    """Sums over batches, which stay on the devices until someone looks."""

    loss: Any
    """float32 [], of loss times share"""
    accuracy: Any
    """float32 [], of the share of queries whose target scores highest"""


class GradientStep:
    """``step(params, batch, moment, tally, total) -> (tally, total)``: the gradients of a batch, compiled once a shape.

    The rows of ``batch`` are divided over the mesh, everything else is the same on every device. Each device encodes
    its rows, gets all passages, scores its queries against them, and returns the passages' gradients to their owners;
    the parameters' gradients are summed over devices once. What comes back is that of one device with the whole batch.

    ``total`` is the parameters' gradient so far, to which the batch's is added, or None; it and ``tally`` are used up.
    """

    def __init__(self, encoder: JaxRetriever, settings: StepSettings, mesh: Mesh) -> None:
        self._settings = settings
        self._sides: tuple[Encode, Encode] = (_side(encoder, "query"), _side(encoder, "passage"))
        self._device = mesh.devices.flat[0]
        # On a TPU the other generator would take a noticeable part of the step for dropout alone.
        self._key_kind = "rbg" if self._device.platform == "tpu" else "threefry2x32"
        on_devices = jax.shard_map(
            self._on_a_device,
            mesh=mesh,
            in_specs=(WHOLE, ROWS, WHOLE, WHOLE, WHOLE),
            out_specs=(WHOLE, WHOLE),
            check_vma=False,
        )
        self.compiled = jax.jit(on_devices, donate_argnums=(3, 4))

    def __call__(
        self, params: Params, batch: Batch, moment: Moment, tally: Tally, total: Params | None
    ) -> tuple[Tally, Params]:
        return self.compiled(params, batch, moment, tally, total)

    def _on_a_device(
        self, params: Params, batch: Batch, moment: Moment, tally: Tally, total: Params | None
    ) -> tuple[Tally, Params]:
        keys = self._keys(moment)
        weight = batch.weight / lax.psum(batch.weight.sum(), AXIS)
        score = functools.partial(self._score, batch=batch, weight=weight, share=moment.share)
        gradients = self._plain if self._settings.chunk_rows is None else self._cached
        loss, correct, gradient = gradients(params, batch, keys, score)
        loss, accuracy, gradient = lax.psum((loss, (correct * weight).sum(), gradient), AXIS)
        tally = Tally(tally.loss + loss, tally.accuracy + accuracy)
        return tally, gradient if total is None else jax.tree.map(jnp.add, total, gradient)

    def _keys(self, moment: Moment) -> tuple[jax.Array, jax.Array]:
        """This device's keys for queries and for passages."""
        key = jax.random.key(moment.seed, impl=self._key_kind)
        for number in (moment.step, moment.part, lax.axis_index(AXIS)):
            key = jax.random.fold_in(key, number)
        return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)

    def _plain(self, params: Params, batch: Batch, keys: Any, score: Any) -> tuple[jax.Array, jax.Array, Params]:
        def encode(params: Params) -> list[jax.Array]:
            rows = zip(self._sides, (batch.query, batch.passage), keys, strict=True)
            # The keys of the only chunk: a cached step with one chunk is this step.
            return [side(params, inputs, jax.random.fold_in(key, 0)) for side, inputs, key in rows]

        encoded, pullback = jax.vjp(encode, params)
        loss, correct, gradients = score(*encoded)
        (gradient,) = pullback([g.astype(e.dtype) for g, e in zip(gradients, encoded, strict=True)])
        return loss, correct, gradient

    def _cached(self, params: Params, batch: Batch, keys: Any, score: Any) -> tuple[jax.Array, jax.Array, Params]:
        assert self._settings.chunk_rows is not None
        rows = list(zip(self._sides, (batch.query, batch.passage), keys, self._settings.chunk_rows, strict=True))
        encoded = [encode_chunks(side, params, inputs, key, most) for side, inputs, key, most in rows]
        loss, correct, gradients = score(*encoded)
        total = jax.tree.map(jnp.zeros_like, params)
        for (side, inputs, key, most), gradient in zip(rows, gradients, strict=True):
            total = chunk_gradients(side, params, inputs, key, most, gradient, total)
        return loss, correct, total

    def _score(
        self, query: jax.Array, passage: jax.Array, *, batch: Batch, weight: jax.Array, share: jax.Array
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
        """This device's part of the loss, which of its queries are right, and the gradients of its representations."""
        passage_id = None
        if self._settings.mask_duplicates:
            passage_id = number_rows(lax.all_gather(batch.passage_id, AXIS, tiled=True))
        result = contrastive_loss_and_grad(
            query,
            lax.all_gather(passage, AXIS, tiled=True),
            batch.target,
            scale=self._settings.scale,
            passage_id=passage_id,
            weight=weight * share,
            label_smoothing=self._settings.label_smoothing,
            is_passage=lax.all_gather(batch.is_passage, AXIS, tiled=True),
            reduction="sum",
            device=self._device,
        )
        passage_grad = lax.psum_scatter(result.passage_grad, AXIS, tiled=True)
        return result.loss, result.correct, (result.query_grad, passage_grad)


def number_rows(rows: jax.Array) -> jax.Array:
    """Numbers int32 [M] that are equal where rows of ``rows`` [M, 2] are: 64-bit ids in a program that has none."""
    order = jnp.lexsort((rows[:, 0], rows[:, 1]))
    ordered = rows[order]
    is_new = jnp.any(ordered[1:] != ordered[:-1], axis=1)
    numbers = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(is_new, dtype=jnp.int32)])
    return jnp.zeros(len(rows), jnp.int32).at[order].set(numbers)


def _side(encoder: JaxRetriever, side: Side) -> Encode:
    return lambda params, inputs, key: encoder.encode(params, side, inputs, key)
