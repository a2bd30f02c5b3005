"""The whole training step passes the real TPU compilers, without a TPU; memory as they report it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'fastdense[tpu]'"
    ),
]


def compile_for(topology: str, *flags: str) -> list[dict[str, float]]:
    command = [sys.executable, "-W", "ignore", "-m", "benches", "tpu_compile", "--topology", topology, *flags]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


def test_the_cached_step_compiles_for_a_v3_8() -> None:
    (line,) = compile_for("v3:2x2", *"--batch 128 --chunk 4 8 --length 16 24".split())  # quicker than whole lengths
    assert line["device"] == "TPU v3"


def test_the_plain_step_compiles_for_a_v5e_in_bfloat16() -> None:
    (line,) = compile_for("v5e:2x4", "--batch", "32", "--chunk", "0", "0", "--dtype", "bfloat16")
    assert line["device"] == "TPU v5 lite"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "base"])
def test_the_memory_of_the_cached_step_does_not_grow_with_the_batch(model: str) -> None:
    """Of a V3-8, which has 16 GB a device. Both sizes run several chunks: of a single one XLA unrolls the loop."""
    small, large = compile_for("v3:2x2", "--model", model, "--batch", "1024", "4096")
    # What grows is the batch's token ids and representations, not activations.
    assert large["temporary_mib"] <= small["temporary_mib"] + 64
    assert large["device_mib"] <= 15_500
