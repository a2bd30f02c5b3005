"""What only the compiled implementation has: instruction sets, tiles, row lengths around the vector width, memory."""

import os
import subprocess
import sys

import pytest
import torch

from fastdense import _C, contrastive_loss_and_grad

INSTRUCTION_SETS = {
    "generic": True,
    "avx2": _C.cpu_capabilities().get("avx2", False),
    "avx512": _C.cpu_capabilities().get("avx512", False),
}

COMPARE_WITH_FLOAT64 = """
import torch
from fastdense import contrastive_loss_and_grad
torch.manual_seed(0)
for columns in (1, 15, 16, 17, 33, 1024, 1025, 2100):
    query, passage = torch.randn(5, 24), torch.randn(columns, 24)
    target, ids = torch.arange(5) % columns, torch.arange(columns) % 50
    for scale in (1.0, 10.0):
        both = [
            contrastive_loss_and_grad(q, p, target, scale=scale, passage_id=ids, label_smoothing=0.1)
            for q, p in ((query, passage), (query.double(), passage.double()))
        ]
        for actual, expected in zip(*both, strict=True):
            if actual.dtype != torch.bool:
                assert (actual - expected).norm() <= 1e-5 * (expected.norm() + scale), (columns, scale)
"""


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set(name):
    if not INSTRUCTION_SETS[name]:
        pytest.skip(f"this CPU has no {name}")
    environment = os.environ | {"FASTDENSE_CPU_INSTRUCTION_SET": name}
    subprocess.run([sys.executable, "-c", COMPARE_WITH_FLOAT64], env=environment, check=True)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 2049])
def test_row_lengths_around_the_vector_width(oracle, draw, relative_error, columns):
    query, passage = draw("random", 3, columns, 16)
    target = torch.tensor([0, columns // 2, columns - 1])
    exact = oracle(query, passage, target, scale=10.0)
    result = contrastive_loss_and_grad(query, passage, target, scale=10.0, implementation="native")
    for name in exact._fields:
        if exact.loss > 0:
            assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passages_beyond_one_tile(oracle, draw, relative_error, dtype):
    """At width 4096 a tile of converted passages holds 512 rows."""
    query, passage = draw("random", 3, 1200, 4096, dtype)
    target = torch.tensor([5, 600, 1199])
    exact = oracle(query, passage, target, scale=20.0)
    result = contrastive_loss_and_grad(query, passage, target, scale=20.0, implementation="native")
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name


@pytest.mark.slow
def test_more_scores_than_32_bits_count(draw):
    """46,342 ** 2 is the first square beyond 2 ** 31."""
    query, passage = draw("random", 46_400, 46_400, 2)
    result = contrastive_loss_and_grad(query, passage, scale=2.0, implementation="native")
    rows = torch.tensor([0, 1, 46_341, 46_342, 46_399])
    score = 2 * query[rows].double() @ passage.double().T
    torch.testing.assert_close(result.log_normalizer[rows].double(), score.logsumexp(1), rtol=1e-5, atol=1e-5)
    probability = score.softmax(1)
    probability[range(5), rows] -= 1
    expected = 2 * probability @ passage.double() / 46_400
    torch.testing.assert_close(result.query_grad[rows].double(), expected, rtol=1e-4, atol=1e-10)


def test_memory_stays_within_the_budget():
    """8192 x 8192 scores are 256 MiB; in a process of its own, for the peak is the process's."""
    code = """
import resource, torch
from fastdense import contrastive_loss_and_grad
query, passage = torch.randn(8192, 8), torch.randn(8192, 8)
contrastive_loss_and_grad(query[:64], passage[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contrastive_loss_and_grad(query, passage, chunk_bytes=2**23, implementation="native")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 * 1024  # KiB
