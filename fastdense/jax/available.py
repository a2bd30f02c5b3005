"""Whether JAX is installed at all."""

import importlib.util

from fastdense.errors import UserError


def check_jax() -> None:
    """Raise UserError with the command that installs what is missing."""
    missing = [name for name in ("jax", "jaxlib", "flax", "optax") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{missing[0]} is not installed: pip install "fastdense[jax]", on a TPU also jax[tpu]')
