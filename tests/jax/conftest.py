"""Eight simulated devices, quiet and without a TPU; set before anything starts a JAX backend, inherited by processes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import pytest

pytest.importorskip("jax.numpy", reason="jax is not installed: pip install 'fastdense[jax]'")
