"""benches/gpu_check.sh, which needs a GPU, walked through without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

STUB = """#!{python} -ES
import ast, os, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    ast.parse(arguments[1])
    if "get_device_name().lower" in arguments[1]:
        print("some-gpu")
    elif "find_spec" in arguments[1]:
        print(*(name for name in arguments[2:] if name in {missing}))
    else:
        print("ran -c")
else:
    print("ran", *arguments, "beside", os.environ["PYTHONPATH"])
    sys.exit("{failing}" in arguments if "{failing}" else 0)
"""
GPU_CHECK = ROOT / "benches" / "gpu_check.sh"
GPU_STEPS = (
    "build backends triton-tests common-tests mma-tests wgmma-tests other-tests sanitizer "
    "bench-bfloat16 bench-float16 bench-float32 large train-step"
).split()


def check_gpu(folder, *steps, failing="", missing=(), **variables):
    """benches/gpu_check.sh with a Python that only says what it is asked for, and fails where that is ``failing``."""
    stub, sanitizer = folder / "python", folder / "compute-sanitizer"
    stub.write_text(STUB.format(python=sys.executable, failing=failing, missing=missing))
    sanitizer.write_text('#!/bin/sh\necho ran compute-sanitizer "$@"\n')
    for file in (stub, sanitizer):
        file.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    variables = os.environ | {"PYTHON": str(stub), "OUT": str(folder / "out"), "PATH": path} | variables
    return subprocess.run(["bash", str(GPU_CHECK), *steps], env=variables, capture_output=True, text=True)


def log_of_steps(folder):
    """What the log holds of each step, of its last run."""
    log = (folder / "out" / "some-gpu-gpu-check.log").read_text()
    parts = re.split(r"^=== (\S+)\n", log, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_gpu_check_walks_through_its_steps_in_under_nine_minutes(tmp_path):
    done = check_gpu(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"gpu_check: all passed: {' '.join(GPU_STEPS)}; results in {tmp_path}/out"
    assert re.findall(r"^=== (.*)$", done.stdout, re.MULTILINE) == GPU_STEPS
    source = GPU_CHECK.read_text()
    limits = re.findall(r"\b(step|tests|bench) (\S+) (\d+) ?", source)
    assert [f"bench-{name}" if kind == "bench" else name for kind, name, _ in limits] == GPU_STEPS
    total = sum(int(seconds) for *_, seconds in limits)
    assert total < 540
    assert f"the steps' limits add up to {total} seconds" in source


def test_gpu_check_writes_one_log_with_all_that_its_steps_print(tmp_path):
    check_gpu(tmp_path)
    logs = log_of_steps(tmp_path)
    assert list(logs) == GPU_STEPS
    for name, log in logs.items():
        assert re.search(rf"^ran .*^--- {name}: status 0 after ", log, re.DOTALL | re.MULTILINE), name
    assert "-m gpu -n 4 --dist worksteal --timeout 10 " in logs["common-tests"]
    assert "tests/loss/test_cuda_gpu.py -k not wgmma beside " in logs["mma-tests"]
    assert re.search(r"^ran benches/gpu_sanitize.py .*^ran compute-sanitizer ", logs["sanitizer"], re.DOTALL | re.M)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["some-gpu-gpu-check.log"]


def test_gpu_check_runs_the_steps_that_are_named(tmp_path):
    check_gpu(tmp_path, "backends")
    done = check_gpu(tmp_path, "large", "bench-float32")
    assert re.findall(r"^=== (.*)$", done.stdout, re.MULTILINE) == ["build", "bench-float32", "large"]
    assert "gpu_check: all passed: build bench-float32 large; results in" in done.stdout
    assert list(log_of_steps(tmp_path)) == ["build", "backends", "bench-float32", "large"]  # of both runs


def test_gpu_check_lists_its_steps_to_who_names_another(tmp_path):
    done = check_gpu(tmp_path, "large", "larger")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpu_check: there is no step larger; the steps are {' '.join(GPU_STEPS)}\n"


def test_gpu_check_names_what_it_leaves_out(tmp_path):
    done = check_gpu(tmp_path, missing=("datasets", "faiss", "pytest_timeout"))
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "train-step (no datasets)" in last
    assert "tests/training/test_step.py (no datasets)" in last
    assert "tests/retrieval/test_nearest.py (no faiss)" in last
    assert "=== train-step: left out, no datasets\n" in done.stdout
    assert last in (tmp_path / "out" / "some-gpu-gpu-check.log").read_text()
    assert "-m gpu tests/jax/test_gpu.py beside " in log_of_steps(tmp_path)["other-tests"]


def test_gpu_check_keeps_what_the_caller_put_on_the_path(tmp_path):
    check_gpu(tmp_path, "large", PYTHONPATH=f"{tmp_path}/one:relative")
    logs = log_of_steps(tmp_path)
    assert f"beside {tmp_path}/one:{os.getcwd()}/relative\n" in logs["build"]
    assert re.search(rf"beside /\S+:{tmp_path}/one:{os.getcwd()}/relative\n", logs["large"])


def test_gpu_check_reports_what_failed(tmp_path):
    done = check_gpu(tmp_path, failing="pytest")
    assert done.returncode == 1
    failed = "triton-tests common-tests mma-tests wgmma-tests other-tests"
    log = tmp_path / "out" / "some-gpu-gpu-check.log"
    assert done.stdout.splitlines()[-1] == f"gpu_check: failed: {failed}; see {log}"
    assert "=== large\n" in done.stdout


def test_gpu_check_ends_where_nothing_was_built(tmp_path):
    done = check_gpu(tmp_path, failing="pip")
    assert done.returncode == 1
    assert re.findall(r"^=== (.*)$", done.stdout, re.MULTILINE) == ["build"]


def test_gpu_check_runs_every_test_that_needs_a_gpu():
    marked = [file for file in (ROOT / "tests").glob("*/test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8")]
    assert marked
    unnamed = {str(file.relative_to(ROOT)) for file in marked} - set(re.findall(r"tests/\S+", GPU_CHECK.read_text()))
    assert not unnamed


def test_gpu_check_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    variables = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(["bash", str(GPU_CHECK)], env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["gpu_check: torch sees no GPU"]
