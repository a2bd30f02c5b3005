"""ModernBERT: LayerNorm before each part, rotary positions, gated feed-forward, attention mostly to near tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastdense.errors import UserError
from fastdense.jax.backbones.layers import (
    MASKED,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    activation,
    attend,
    mask_bias,
    split_heads,
)

_LOCAL = "sliding_attention"

_NAMES = {
    "words": "embeddings.tok_embeddings",
    "embedding_norm": "embeddings.norm",
    "final_norm": "final_norm",
    "attention_norm": "attn_norm",
    "query_key_value": "attn.Wqkv",
    "out": "attn.Wo",
    "inner_norm": "mlp_norm",
    "up": "mlp.Wi",
    "down": "mlp.Wo",
}


class ModernBert(nnx.Module):
    """Token ids [B, L] to token states [B, L, hidden], for a ``ModernBertConfig``."""

    def __init__(self, config: Any, dtype: Any) -> None:
        self.thetas = {kind: _theta(config, kind) for kind in set(config.layer_types)}
        self.window = config.local_attention // 2
        self.rate = config.embedding_dropout
        self.head_width = config.hidden_size // config.num_attention_heads
        self.words = Embedding(config.vocab_size, config.hidden_size, dtype, padding=config.pad_token_id)
        self.embedding_norm = _norm(config, dtype)
        self.layers = nnx.List([Block(config, index, dtype) for index in range(config.num_hidden_layers)])
        self.final_norm = _norm(config, dtype)

    def __call__(self, inputs: dict[str, jax.Array], drop: Dropout) -> jax.Array:
        x = drop(self.embedding_norm(self.words(inputs["input_ids"])), self.rate)
        length = x.shape[1]
        places = jnp.arange(length)
        everywhere = mask_bias(inputs["attention_mask"])
        near = jnp.abs(places[:, None] - places[None, :]) <= self.window
        nearby = everywhere + jnp.where(near, 0.0, MASKED)[None, None]
        rotations = {kind: _rotation(length, self.head_width, theta) for kind, theta in self.thetas.items()}
        for layer in self.layers:
            x = layer(x, nearby if layer.kind == _LOCAL else everywhere, rotations[layer.kind], drop)
        return self.final_norm(x)

    def name(self, path: tuple[Any, ...]) -> str:
        """What the checkpoint calls the parameter at ``path``."""
        if path[0] == "layers":
            return f"layers.{path[1]}.{_NAMES[path[2]]}.{path[3]}"
        return f"{_NAMES[path[0]]}.{path[1]}"


class Block(nnx.Module):
    """One layer: attention, then the gated feed-forward, each on normalized input and added to it."""

    def __init__(self, config: Any, index: int, dtype: Any) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.kind = config.layer_types[index]
        self.heads = config.num_attention_heads
        self.attention_rate, self.rate = config.attention_dropout, config.mlp_dropout
        self.activation = activation(config.hidden_activation)
        # The embeddings' norm is the first layer's.
        self.attention_norm = _norm(config, dtype) if index else None
        self.query_key_value = Linear(hidden, 3 * hidden, dtype, bias=config.attention_bias)
        self.out = Linear(hidden, hidden, dtype, bias=config.attention_bias)
        self.inner_norm = _norm(config, dtype)
        self.up = Linear(hidden, 2 * inner, dtype, bias=config.mlp_bias)
        self.down = Linear(inner, hidden, dtype, bias=config.mlp_bias)

    def __call__(
        self, x: jax.Array, bias: jax.Array, rotation: tuple[jax.Array, jax.Array], drop: Dropout
    ) -> jax.Array:
        normal = x if self.attention_norm is None else self.attention_norm(x)
        query, key, value = (
            split_heads(part, self.heads) for part in jnp.split(self.query_key_value(normal), 3, axis=-1)
        )
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        attended = attend(query, key, value, bias, lambda shares: drop(shares, self.attention_rate))
        x = x + drop(self.out(attended), self.attention_rate)
        inner, gate = jnp.split(self.up(self.inner_norm(x)), 2, axis=-1)
        return x + self.down(drop(self.activation(inner) * gate, self.rate))


def _norm(config: Any, dtype: Any) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.norm_eps, dtype, bias=config.norm_bias)


def _theta(config: Any, kind: str) -> float:
    """The base of the rotations of one kind of layer."""
    settings = config.rope_parameters[kind]
    if settings.get("rope_type", "default") != "default":
        raise UserError(f"rotary positions of the type {settings['rope_type']!r} have no JAX form here: default has")
    return float(settings["rope_theta"])


def _rotation(length: int, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32 [L, width] of each position's angles."""
    frequencies = theta ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding (Su et al., "RoFormer", 2021) of heads [B, L, H, d]."""
    cosine, sine = (part[None, :, None, :] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cosine + turned * sine).astype(x.dtype)
