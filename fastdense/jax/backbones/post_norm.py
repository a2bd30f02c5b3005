"""BERT and its relatives: attention and feed-forward layers, each followed by a LayerNorm.

They differ in the names of their weights, in how positions are counted, in three parts that not all have (token types,
a projection of the embeddings in ELECTRA, attention biased by distance in MPNet), and in the numbers that transformers
takes from no configuration.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastdense.errors import UserError
from fastdense.jax.backbones.layers import (
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    activation,
    attend,
    mask_bias,
    split_heads,
)


@dataclass(frozen=True)
class Family:
    """How one of them is spelt: its names for our modules, and its configuration's names for our numbers."""

    layers: str
    block: dict[str, str]
    embeddings: dict[str, str]
    config: dict[str, str]
    """Only what transformers reads: a configuration may bring other keys, which say nothing."""
    positions_after_padding: bool = False
    """Positions are counted over tokens that are not padding, from the padding's id + 1."""
    relative_bias: str | None = None
    buckets: int = 0
    """Of ``relative_bias``; the table may have more entries."""
    padding: int | None = None
    """The padding's id, where it is not the configuration's ``pad_token_id``."""
    epsilon: float | None = None
    """LayerNorm's, where it is not the configuration's ``layer_norm_eps``."""


_BERT_BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_MPNET_BLOCK = _BERT_BLOCK | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
_DISTILBERT_BLOCK = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "embedding_projection": "embeddings_project",
}
_MPNET_CONFIG = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_BERT_CONFIG = _MPNET_CONFIG | {"types": "type_vocab_size"}
_DISTILBERT_CONFIG = {
    "layers": "n_layers",
    "heads": "n_heads",
    "hidden": "dim",
    "inner": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}

_BERT = Family("encoder.layer", _BERT_BLOCK, _EMBEDDINGS, _BERT_CONFIG)
_ELECTRA = Family("encoder.layer", _BERT_BLOCK, _EMBEDDINGS, _BERT_CONFIG | {"width": "embedding_size"})
_ROBERTA = Family("encoder.layer", _BERT_BLOCK, _EMBEDDINGS, _BERT_CONFIG, positions_after_padding=True)
FAMILIES = {
    "bert": _BERT,
    "electra": _ELECTRA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family("transformer.layer", _DISTILBERT_BLOCK, _EMBEDDINGS, _DISTILBERT_CONFIG, epsilon=1e-12),
    "mpnet": Family(
        "encoder.layer",
        _MPNET_BLOCK,
        _EMBEDDINGS,
        _MPNET_CONFIG,
        positions_after_padding=True,
        relative_bias="encoder.relative_attention_bias",
        buckets=32,
        padding=1,
    ),
}


class PostNorm(nnx.Module):
    """Token ids [B, L] to token states [B, L, hidden], for a ``config`` whose model_type is in FAMILIES."""

    def __init__(self, config: Any, dtype: Any) -> None:
        self.family = FAMILIES[config.model_type]
        size = {ours: getattr(config, theirs) for ours, theirs in self.family.config.items()}
        epsilon = config.layer_norm_eps if self.family.epsilon is None else self.family.epsilon
        width, types = size.get("width", size["hidden"]), size.get("types")
        self.padding = config.pad_token_id if self.family.padding is None else self.family.padding
        self.rate = size["dropout"]
        self.words = Embedding(config.vocab_size, width, dtype, padding=self.padding)
        after_padding = self.padding if self.family.positions_after_padding else None
        self.positions = Embedding(config.max_position_embeddings, width, dtype, padding=after_padding)
        self.types = Embedding(types, width, dtype) if types else None
        self.embedding_norm = LayerNorm(width, epsilon, dtype)
        self.embedding_projection = Linear(width, size["hidden"], dtype) if width != size["hidden"] else None
        self.layers = nnx.List([Block(size, epsilon, dtype) for _ in range(size["layers"])])
        self.relative_bias = _relative_bias(config, self.family.buckets, size["heads"])

    def __call__(self, inputs: dict[str, jax.Array], drop: Dropout) -> jax.Array:
        x = drop(self.embedding_norm(self._embed(inputs)), self.rate)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        bias = mask_bias(inputs["attention_mask"])
        if self.relative_bias is not None:
            distances = _buckets(x.shape[1], self.family.buckets)
            bias = bias + self.relative_bias(distances).transpose(2, 0, 1)[None]
        for layer in self.layers:
            x = layer(x, bias, drop)
        return x

    def _embed(self, inputs: dict[str, jax.Array]) -> jax.Array:
        ids = inputs["input_ids"]
        positions = jnp.arange(ids.shape[1])[None]
        if self.family.positions_after_padding:
            tokens = (ids != self.padding).astype(jnp.int32)
            positions = jnp.cumsum(tokens, axis=1) * tokens + self.padding
        x = self.words(ids) + self.positions(positions)
        if self.types is not None:
            x = x + self.types(inputs.get("token_type_ids", jnp.zeros_like(ids)))
        return x

    def name(self, path: tuple[Any, ...]) -> str:
        """What the checkpoint calls the parameter at ``path``."""
        if path[0] == "layers":
            return f"{self.family.layers}.{path[1]}.{self.family.block[path[2]]}.{path[3]}"
        if path[0] == "relative_bias":
            return f"{self.family.relative_bias}.{path[1]}"
        return f"{self.family.embeddings[path[0]]}.{path[1]}"


class Block(nnx.Module):
    """One layer: attention, LayerNorm, feed-forward, LayerNorm."""

    def __init__(self, size: dict[str, Any], epsilon: float, dtype: Any) -> None:
        hidden, inner = size["hidden"], size["inner"]
        self.heads = size["heads"]
        self.rate, self.attention_rate = size["dropout"], size["attention_dropout"]
        self.activation = activation(size["activation"])
        self.query = Linear(hidden, hidden, dtype)
        self.key = Linear(hidden, hidden, dtype)
        self.value = Linear(hidden, hidden, dtype)
        self.out = Linear(hidden, hidden, dtype)
        self.attention_norm = LayerNorm(hidden, epsilon, dtype)
        self.up = Linear(hidden, inner, dtype)
        self.down = Linear(inner, hidden, dtype)
        self.output_norm = LayerNorm(hidden, epsilon, dtype)

    def __call__(self, x: jax.Array, bias: jax.Array, drop: Dropout) -> jax.Array:
        query, key, value = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        attended = self.out(attend(query, key, value, bias, lambda shares: drop(shares, self.attention_rate)))
        x = self.attention_norm(x + drop(attended, self.rate))
        inner = self.down(self.activation(self.up(x)))
        return self.output_norm(x + drop(inner, self.rate))


def _relative_bias(config: Any, buckets: int, heads: int) -> Embedding | None:
    if not buckets:
        return None
    entries = config.relative_attention_num_buckets
    if entries < buckets:
        raise UserError(
            f"relative_attention_num_buckets is {entries} in config.json, but {buckets} are used, whatever it says: "
            f"use a model with {buckets} or more"
        )
    return Embedding(entries, heads, jnp.float32)


def _buckets(length: int, buckets: int, farthest: int = 128) -> jax.Array:
    """T5's buckets of the distance from each token to each, int32 [L, L]: exact when near, logarithmic when far."""
    places = jnp.arange(length)
    behind = places[:, None] - places[None, :]  # positive: the other token stands before
    half = buckets // 2
    exact = half // 2
    distance = jnp.abs(behind)
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(farthest / exact)
    far = jnp.minimum(exact + (ratio * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(behind < 0, half, 0) + jnp.where(distance < exact, distance, far)
