"""The Triton implementation in Triton's interpreter, in a process of its own; the device's part on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdense import contrastive_loss_and_grad
from fastdense.loss.implementations import triton

FOLDER = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_the_interpreter starts")

FILES = ["test_accuracy.py", "test_semantics.py", "test_operator.py", "test_triton.py"]

# The interpreter takes a second for some hundred tiles, so of each grid a few cases stand for the others: the hardest
# scales, the shape that is ragged in every direction, all options at once in several chunks. Numbers of queries that
# only csrc/cpu treats differently have one that stands for them.
LEFT_OUT = [
    "float32_is and (1.0 or 20.0 or 50.0 or (shape0 and not 100.0-raw) or shape4 or (shape5 and not 100.0-trained))",
    "float32_is and shape6",
    "test_options and (triton-1- or (triton-2000 and not 2000-all) or sum or weight or symmetric or 39 or 70)",
    "opcheck and not (True-True-dtype1)",
    "twice_the_rounding_of and (1.0 or 50.0 or (shape1 and not 100.0-trained))",
    "twice_what and not raw-100.0",
    "half_precision and not 100.0-raw",
    "two_millionths and (67 or not 100.0)",
    "wide_float32 and 72",
    "billions and (70 or True)",
    "autograd_gives and not all",
    "same_bits or loss_and_grad_stays or (compile and not triton-False) or (contiguous and dtype0)",
]
# Without those whose only difference is more and smaller chunks.
TOO_SLOW = ["test_options and triton-1-", "same_bits"]


@pytest.mark.skipif(INTERPRETED, reason="this is the process it starts")
@pytest.mark.parametrize("left_out", [LEFT_OUT, pytest.param(TOO_SLOW, marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_interpreter(left_out):
    pytest.importorskip("triton")
    chosen = "triton and not (" + " or ".join(f"({cases})" for cases in left_out) + ")"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    # The interpreter computes with numpy, which warns where a kernel relies on inf and nan; Triton 3.6, of torch 2.10,
    # reads numbers from arrays in a way that numpy is giving up (and has given up in 2.4: there this test fails).
    ignored = ["-W", "ignore::RuntimeWarning", "-W", "ignore:Conversion of an array:DeprecationWarning"]
    done = subprocess.run(
        [*command, *ignored, "-k", chosen, *(str(FOLDER / name) for name in FILES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=FOLDER.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="it does run there")
def test_on_a_cpu_it_refuses_with_the_reason(draw):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="only in Triton's interpreter"):
        contrastive_loss_and_grad(*draw("random", 4, 8, 16), implementation="triton")


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(triton, "_INSTALLED", False)
    assert "not installed" in triton.unavailable(torch.device("cuda"), torch.bfloat16)


def test_float64_is_refused():
    pytest.importorskip("triton")
    assert "no float64 kernel" in triton.unavailable(torch.device("cuda"), torch.float64)


@in_interpreter
@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(33, 131, 40), (3, 65, 7)])
def test_tiles_at_every_border(monkeypatch, oracle, draw, relative_error, rounding_of, descriptors, dtype, shape):
    """Ragged in all three directions, by descriptors and by pointers, with everything that masks."""
    from dataclasses import replace

    from fastdense.loss.implementations.triton import launch

    tiles = replace(launch.INTERPRETER, rows=16, columns=64, width=16, descriptors=descriptors)
    monkeypatch.setattr(launch, "INTERPRETER", tiles)
    launch.default_tiles.cache_clear()
    query, passage = draw("random", *shape, dtype)
    rows, columns = shape[:2]
    options = {"scale": 12.0, "passage_id": torch.arange(columns) % (columns // 2) - 2**40, "label_smoothing": 0.1}
    target = columns - 1 - torch.arange(rows)
    exact = oracle(query, passage, target, **options)
    result = contrastive_loss_and_grad(query, passage, target, implementation="triton", **options)
    launch.default_tiles.cache_clear()
    for name in exact._fields:
        rounding = 2 * rounding_of("triton", dtype) if name in ("query_grad", "passage_grad") else 5e-6
        assert relative_error(getattr(result, name), getattr(exact, name)) < rounding, name


@in_interpreter
def test_rows_in_and_out_of_the_bounds_range(oracle, relative_error):
    """Of one chunk, a row that the bound serves, and rows that need their log-sum-exp: far below and far above it."""
    query = torch.tensor([[1.0, 0, 0, 0], [200.0, 0, 0, 0], [-200.0, 0, 0, 0], [0, 0, 90, 0]], dtype=torch.bfloat16)
    passage = torch.tensor([[1.0, 0, 0, 0], [0.5, 1, 0, 0], [-1, 0, 0, 0], [-0.9, 0, 1, 0]], dtype=torch.bfloat16)
    target = torch.tensor([1, 2, 2, 3])
    exact = oracle(query, passage, target)
    result = contrastive_loss_and_grad(query, passage, target, implementation="triton")
    assert relative_error(result.loss, exact.loss) < 1e-6
    assert relative_error(result.query_grad, exact.query_grad) < 4e-3
    assert relative_error(result.passage_grad, exact.passage_grad) < 4e-3


@in_interpreter
def test_a_target_out_of_range_gives_nan(draw):
    query, passage = draw("random", 2, 8, 16, torch.bfloat16)
    from fastdense.loss.exponential_pass import contrastive
    from fastdense.loss.implementations.triton import launch

    target, scale = torch.tensor([0, 8]), torch.tensor(3.0)
    arguments = (query, passage, target, scale, None, None, 0.0, True, True, True, 2**20)
    loss, query_grad, *_ = contrastive(launch, *arguments)
    assert loss.isnan()
    assert query_grad[1].isnan().all()
    assert query_grad[0].isfinite().all()


@in_interpreter
@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0, 100.0])
@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
def test_bfloat16_errs_no_more_than_twice_what_rounding_the_inputs_does(oracle, draw, relative_error, kind, scale):
    query, passage = draw(kind, 40, 120, 64)
    rounded = query.bfloat16(), passage.bfloat16()
    unrounded, exact = oracle(query, passage, scale=scale), oracle(*rounded, scale=scale)
    result = contrastive_loss_and_grad(*rounded, scale=scale, implementation="triton")
    for name in exact._fields:
        of_inputs = relative_error(getattr(exact, name), getattr(unrounded, name))
        assert relative_error(getattr(result, name), getattr(exact, name)) <= 2 * of_inputs + 1e-7, name
