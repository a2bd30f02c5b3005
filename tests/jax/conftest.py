"""Eight simulated devices, quiet and without a TPU: set before a JAX backend starts, and inherited by subprocesses."""

import importlib.util
import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()


def pytest_pycollect_makemodule() -> None:
    if importlib.util.find_spec("jaxlib") is None:  # "jax" would also find this folder
        pytest.skip("jax is not installed: pip install 'fastdense[jax]'")
