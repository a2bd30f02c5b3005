"""What every backbone is made of. Parameters are float32 and laid out as PyTorch's; a module computes in ``dtype``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastdense.errors import UserError

MASKED = -1e30  # finite: a row without any token gives numbers, not NaN


class Linear(nnx.Module):
    """``x @ weight.T + bias``, weight [out, in]."""

    def __init__(self, in_features: int, out_features: int, dtype: Any, *, bias: bool = True) -> None:
        self.weight = nnx.Param(jnp.zeros((out_features, in_features)))
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        product = jnp.einsum("...i,oi->...o", x.astype(self.dtype), self.weight[...].astype(self.dtype))
        return product if self.bias is None else product + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Normalization over the last axis in float32, whatever the dtype of input and result."""

    def __init__(self, features: int, epsilon: float, dtype: Any, *, bias: bool = True) -> None:
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centered = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centered).mean(axis=-1, keepdims=True)
        normal = centered * jax.lax.rsqrt(variance + self.epsilon) * self.weight[...]
        return (normal if self.bias is None else normal + self.bias[...]).astype(self.dtype)


class Embedding(nnx.Module):
    """Rows of ``weight`` [entries, features]; that of ``padding`` is not trained, as with PyTorch's ``padding_idx``."""

    def __init__(self, entries: int, features: int, dtype: Any, *, padding: int | None = None) -> None:
        self.weight = nnx.Param(jnp.zeros((entries, features)))
        self.padding = None if padding is None else padding % entries  # PyTorch counts -1 from the end
        self.dtype = dtype

    def __call__(self, rows: jax.Array) -> jax.Array:
        taken = self.weight[...][rows]
        if self.padding is not None:
            # Of the rows taken: the table is never copied, and forwards this is nothing.
            taken = jnp.where((rows == self.padding)[..., None], jax.lax.stop_gradient(taken), taken)
        return taken.astype(self.dtype)


class Dropout:
    """Inverted dropout whose every call draws from another key; without a key it does nothing."""

    def __init__(self, key: jax.Array | None) -> None:
        self._key = key
        self._calls = 0

    def __call__(self, x: jax.Array, rate: float) -> jax.Array:
        self._calls += 1  # also at rate 0: a rate changes no other call's draw
        if self._key is None or rate == 0:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(self._key, self._calls), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, drop: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Softmax attention. Heads [B, L, H, d] and ``bias``, added to the scores [B, H, L, L], to [B, L, H * d].

    Scores and softmax are float32; ``drop`` is applied to the probabilities.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / query.shape[-1] ** 0.5 + bias
    shares = drop(jax.nn.softmax(scores, axis=-1)).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, L, H * d] to [B, L, H, d]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def mask_bias(attention_mask: jax.Array) -> jax.Array:
    """[B, L] to what keeps attention from padding, float32 [B, 1, 1, L]."""
    return jnp.where(attention_mask[:, None, None, :] != 0, 0.0, MASKED).astype(jnp.float32)


def _tanh_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _exact_gelu,
    "gelu_python": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that a configuration names; UserError for one that has no equal here."""
    if name not in _ACTIVATIONS:
        raise UserError(f"the activation {name!r} has no JAX form here: {', '.join(_ACTIVATIONS)} have")
    return _ACTIVATIONS[name]
