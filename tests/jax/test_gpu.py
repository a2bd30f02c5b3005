"""JAX on a GPU, in processes of their own: this one's devices are simulated. Not yet run on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no GPU here")]


def on_the_gpu(*command: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def a_gpu_for_jax() -> None:
    found = on_the_gpu("-c", "import jax; print(jax.default_backend())").strip()
    if found != "gpu":
        pytest.skip(f"jax runs on the {found} here: pip install 'jax[cuda13]'")


def bench(name: str, output: Path, *arguments: str) -> Any:
    on_the_gpu("-m", "benches", name, *arguments, "--json", str(output))
    return json.loads(output.read_text())


def test_the_loss_is_exact(tmp_path: Path) -> None:
    found = bench("jax_loss", tmp_path / "loss.json", "--shapes", "256x512x96", "--rounds", "1")
    assert all(line["gradient_error"] < 1e-5 for line in found["lines"] if line["provider"] == "fastdense")


def test_the_step_s_gradients_are_those_of_plain_jnp(tmp_path: Path) -> None:
    lines = bench("jax_step", tmp_path / "step.json", "--size", "tiny", "--batch", "32", "--rounds", "1")
    assert all(line.get("difference", 0) < 1e-3 for line in lines)
