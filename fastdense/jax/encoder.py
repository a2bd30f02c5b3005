"""The retriever as JAX functions of its parameters; made from, and copied back into, the one that PyTorch loads."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from fastdense.errors import UserError
from fastdense.jax.backbones.layers import Dropout, Linear
from fastdense.jax.backbones.modernbert import ModernBert
from fastdense.jax.backbones.post_norm import FAMILIES, PostNorm
from fastdense.modeling.encoder import Encoder, Retriever

Side = Literal["query", "passage"]
Params = dict[str, dict[str, jax.Array]]
"""Encoder ("shared", or "query" and "passage") -> the name of a weight in the saved model -> float32 array."""

_BACKBONES: dict[str, type[PostNorm | ModernBert]] = {**dict.fromkeys(FAMILIES, PostNorm), "modernbert": ModernBert}
_UNUSED = "backbone.pooler."  # of the next-sentence prediction: no vector depends on it
_LEAST_LENGTH = 1e-12  # torch.nn.functional.normalize's


def check_supported(retriever: Retriever) -> None:
    """Raise UserError for a backbone that has no JAX form here."""
    for encoder in retriever.encoders:
        config = encoder.backbone.config
        kind = config.model_type
        if kind not in _BACKBONES:
            raise UserError(
                f"there is no JAX encoder for {kind} models: use {', '.join(sorted(_BACKBONES))}, "
                "or train with python -m fastdense.train"
            )
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise UserError(f"position_embedding_type {positions} has no JAX encoder here: absolute has")
        if getattr(config, "is_decoder", False):
            raise UserError(f"a {kind} model with is_decoder has no JAX encoder: use an encoder")
        if getattr(config, "chunk_size_feed_forward", 0):
            raise UserError("chunk_size_feed_forward has no JAX form: set it to 0 in config.json")


class EncoderModule(nnx.Module):
    """Backbone, pooling, projection and normalization, as :class:`fastdense.modeling.encoder.Encoder` has them."""

    def __init__(self, encoder: Encoder, dtype: Any) -> None:
        config = encoder.backbone.config
        self.backbone = _BACKBONES[config.model_type](config, dtype)
        linear = encoder.projection
        self.projection = (
            None
            if linear is None
            else Linear(linear.in_features, linear.out_features, dtype, bias=linear.bias is not None)
        )
        self.pooling = encoder.pooling
        self.normalize = encoder.normalize

    def __call__(self, inputs: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """``input_ids``, ``attention_mask`` (``token_type_ids``) int32 [B, L] to vectors [B, D]."""
        vector = _pool(self.backbone(inputs, Dropout(key)), inputs["attention_mask"], self.pooling)
        if self.projection is not None:
            vector = self.projection(vector)
        if not self.normalize:
            return vector
        exact = vector.astype(jnp.float32)
        squared = jnp.square(exact).sum(axis=-1, keepdims=True)
        # Not the root of a maximum: at 0 its gradient would be NaN.
        return (exact * jax.lax.rsqrt(jnp.maximum(squared, _LEAST_LENGTH**2))).astype(vector.dtype)

    def name(self, path: tuple[Any, ...]) -> str:
        """What :class:`Encoder` calls the parameter at ``path``."""
        return f"backbone.{self.backbone.name(path[1:])}" if path[0] == "backbone" else ".".join(map(str, path))


def _pool(hidden: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
    """Token states [B, L, D] to [B, D]: of the first token, their mean, or of the last token."""
    used = mask != 0
    if pooling == "mean":
        weight = used.astype(jnp.float32)[..., None]
        return ((hidden * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)).astype(hidden.dtype)
    # argmax finds the first of equals: padding may stand on either side.
    place = jnp.argmax(used, axis=1) if pooling == "cls" else used.shape[1] - 1 - jnp.argmax(used[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True, eq=False)
class JaxRetriever:
    """The encoders' programs, without weights; an instance is a constant of the functions that use it."""

    params: Params
    """The weights it was made with."""
    _programs: dict[str, tuple[Any, list[tuple[str, tuple[Any, ...], Any]]]]

    @classmethod
    def from_torch(cls, retriever: Retriever, dtype: Any = jnp.float32) -> "JaxRetriever":
        """The same retriever, computing in ``dtype``. UserError for a backbone that has no JAX form here."""
        check_supported(retriever)
        programs, params = {}, {}
        for name, encoder in _towers(retriever).items():
            graph, state = nnx.split(nnx.eval_shape(lambda encoder=encoder: EncoderModule(encoder, dtype)))
            module = nnx.merge(graph, state)
            entries = [(module.name(path), path, variable) for path, variable in nnx.to_flat_state(state)]
            weights = dict(encoder.named_parameters())
            _check_weights(encoder, weights, {entry: variable.shape for entry, _, variable in entries})
            programs[name] = graph, entries
            params[name] = {entry: _to_jax(weights[entry]) for entry, _, _ in entries}
        return cls(params, programs)

    def encode(self, params: Params, side: Side, inputs: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """Vectors [B, D] of ``inputs`` int32 [B, L], with dropout drawn from ``key``, or without."""
        name = side if side in self._programs else "shared"
        graph, entries = self._programs[name]
        leaves = [(path, variable.replace(params[name][entry])) for entry, path, variable in entries]
        state = nnx.from_flat_state(leaves)
        return nnx.merge(graph, state)(inputs, key)

    def to_torch(self, params: Params, retriever: Retriever) -> None:
        """Copy weights into ``retriever``, in place; what has no JAX form (an unused pooler) stays."""
        with torch.no_grad():
            for name, encoder in _towers(retriever).items():
                weights = dict(encoder.named_parameters())
                for entry, array in params[name].items():
                    weights[entry].copy_(torch.from_numpy(np.array(array)))


def _towers(retriever: Retriever) -> dict[str, Encoder]:
    if retriever.tied:
        return {"shared": retriever.query_encoder}
    return {"query": retriever.query_encoder, "passage": retriever.passage_encoder}


def _check_weights(encoder: Encoder, weights: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError where the JAX form is not that of the loaded model, whose vectors would be others."""
    found = {name: tuple(weight.shape) for name, weight in weights.items() if not name.startswith(_UNUSED)}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            config = encoder.backbone.config
            raise UserError(
                f"the model {config.name_or_path} has no JAX form: its weight {name} is {_shape(found.get(name))}, and "
                f"{_shape(shapes.get(name))} in the JAX encoder for {config.model_type} models; use "
                "python -m fastdense.train or fastdense.encode, which take any model"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of the shape {list(shape)}"


def _to_jax(weight: torch.Tensor) -> jax.Array:
    return jnp.array(weight.detach().to("cpu", torch.float32).numpy())  # a copy: training writes into it
