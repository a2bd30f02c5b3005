"""The compiler of a TPU that is not here: libtpu's, in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

TYPES = {"v3:2x2": "v3-8", "v4:2x2x1": "v4-8", "v5e:2x4": "v5litepod-8", "v5p:2x2x1": "v5p-8", "v6e:2x4": "v6e-8"}
QUIET_AND_OFFLINE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another test's process may compile at the same time
}


def compile_for_tpu(topology: str, code: str, *arguments: str) -> str:
    """Run ``code`` with a mesh ("data",) of the TPU ``topology`` as ``mesh``; return what it prints.

    Skips the test, with the reason, where libtpu is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'fastdense[tpu]'")
    start = f"""
import jax, numpy as np
from jax.experimental.topologies import get_topology_desc
mesh = jax.sharding.Mesh(np.array(get_topology_desc("{topology}", "tpu").devices), ("data",))
"""
    environment = {**os.environ, **QUIET_AND_OFFLINE, "TPU_ACCELERATOR_TYPE": TYPES[topology]}
    # libtpu 0.0.42 overflows a stack of 8 MiB when it compiles for v5e.
    command = ["sh", "-c", 'ulimit -s unlimited 2>/dev/null; exec "$@"', "sh", sys.executable, "-c", start + code]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
