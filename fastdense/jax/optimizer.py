"""An optax optimizer behind the interface of torch's, so that the trainer's schedules and checkpoints serve it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from fastdense.errors import UserError
from fastdense.jax.grad_cache import Params

# Hugging Face names whose formula optax has, element by element.
KINDS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")


def make_transformation(args: Any, decays: Params) -> optax.GradientTransformation:
    """What ``--optim`` does to a gradient before the learning rate; torch's rules and defaults.

    Args:
        args: training arguments, checked by :func:`check_optimizer`.
        decays: a tree of booleans: whether ``--weight_decay`` is for a parameter.
    """
    decay = optax.add_decayed_weights(args.weight_decay, mask=decays)
    if args.optim.value == "sgd":
        return decay
    if args.optim.value == "rmsprop":
        return optax.chain(decay, optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False))
    adam = optax.scale_by_adam(args.adam_beta1, args.adam_beta2, args.adam_epsilon)
    return optax.chain(adam, decay)


def check_optimizer(args: Any) -> None:
    """Raise UserError for an ``--optim`` that is not one of :data:`KINDS`."""
    kind = getattr(args.optim, "value", args.optim)
    if kind not in KINDS:
        raise UserError(f"--optim {kind} is refused: with JAX it can be one of {', '.join(KINDS)}")


class JaxOptimizer(torch.optim.Optimizer):
    """Parameters, optimizer state and accumulated gradients on the devices.

    To torch it has one parameter, whose group takes the learning rate of whatever schedule there is.

    Args:
        params: the parameters, float32; they are used up.
        transformation: the rule, without the learning rate.
        learning_rate: until a schedule sets it.
        max_grad_norm: gradients are scaled down to it; 0 for never.

    Attributes:
        params: the parameters after the last step.
        gradients: what the next step takes: their sum so far, or None.
        parts: how many batches are in it.
        grad_norm: float32 [] on the devices, of the last step's gradients before they were scaled down.
    """

    _is_accelerate_prepared = True  # accelerate's wrapper is for tensors of torch's
    step_was_skipped = False

    def __init__(
        self, params: Params, transformation: optax.GradientTransformation, learning_rate: float, max_grad_norm: float
    ) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(()))], {"lr": learning_rate})
        self.params = params
        self.gradients: Params | None = None
        self.parts = 0
        self.grad_norm: jax.Array | float = float("nan")
        everywhere = jax.tree.leaves(params)[0].sharding
        self._optax_state = jax.jit(transformation.init, out_shardings=everywhere)(params)
        update = _update(transformation, max_grad_norm)
        self._update = jax.jit(update, donate_argnums=(0, 1), out_shardings=everywhere)

    def accumulate(self, gradients: Params) -> None:
        """Take the gradients up to and with another batch."""
        self.gradients = gradients
        self.parts += 1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the accumulated gradients; nothing waits for the devices."""
        learning_rate = np.float32(self.param_groups[0]["lr"])
        self.params, self._optax_state, self.grad_norm = self._update(
            self.params, self._optax_state, self.gradients, learning_rate
        )
        self.gradients, self.parts = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout; the state of its one parameter is optax's, a tensor for each array."""
        arrays = {name: torch.from_numpy(np.array(leaf)) for name, leaf in _named(self._optax_state).items()}
        return {**super().state_dict(), "state": {0: arrays}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave; ValueError if it belongs to another model or rule."""
        saved, own = state_dict["state"].get(0, {}), _named(self._optax_state)
        if {name: tuple(value.shape) for name, value in saved.items()} != {n: v.shape for n, v in own.items()}:
            raise ValueError("the saved state belongs to another optimizer")
        leaves, structure = jax.tree.flatten(self._optax_state)
        loaded = [_like(leaf, saved[name].numpy()) for name, leaf in zip(own, leaves, strict=True)]
        self._optax_state = jax.tree.unflatten(structure, loaded)
        super().load_state_dict({**state_dict, "state": {}})


def _update(transformation: optax.GradientTransformation, max_grad_norm: float) -> Callable[..., Any]:
    def update(params: Params, state: Any, gradients: Params, learning_rate: Any) -> tuple[Params, Any, jax.Array]:
        norm = optax.tree.norm(gradients)
        if max_grad_norm > 0:  # torch's rule: with 1e-6 in the denominator
            factor = jnp.minimum(1.0, max_grad_norm / (norm + 1e-6))
            gradients = jax.tree.map(lambda gradient: gradient * factor, gradients)
        updates, state = transformation.update(gradients, state, params)
        params = jax.tree.map(lambda param, update: param - learning_rate * update, params, updates)
        return params, state, norm

    return update


def _named(state: Any) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _like(leaf: jax.Array, value: Any) -> jax.Array:
    return jax.make_array_from_process_local_data(leaf.sharding, value.astype(leaf.dtype))
