"""What only the compiled implementation has: instruction sets, tiles, row lengths around the vector width, memory."""

import subprocess
import sys

import forked
import pytest
import torch

from fastdense import _C, contrastive_loss_and_grad

INSTRUCTION_SETS = {
    "generic": True,
    "avx2": _C.cpu_capabilities().get("avx2", False),
    "avx512": _C.cpu_capabilities().get("avx512", False),
    "avx512_bf16": _C.cpu_capabilities().get("avx512_bf16", False),
    "amx_bf16": _C.cpu_capabilities().get("amx_bf16", False),
}

COMPARE_WITH_FLOAT64 = """
import torch
from fastdense import contrastive_loss_and_grad
torch.manual_seed(0)
shapes = [(5, columns, 24) for columns in (1, 15, 16, 17, 33, 1024, 1025, 2100)]
shapes += [(rows, 130, width) for rows in (1, 8, 9, 31, 33, 64, 65, 97) for width in (1, 31, 33, 100)]
for rows, columns, width in shapes:
    query, passage = torch.randn(rows, width), torch.randn(columns, width)
    target, ids = torch.arange(rows) % columns, torch.arange(columns) % 50
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query, passage = query.to(dtype), passage.to(dtype)
        for scale, smoothing, chunk_bytes, symmetric in (
            (1.0, 0.0, 1 << 20, False), (1.0, 0.1, 1, False), (10.0, 0.1, 1 << 20, False), (10.0, 0.1, 1 << 20, True)
        ):
            both = [
                contrastive_loss_and_grad(q, p, target, scale=scale, passage_id=ids, label_smoothing=smoothing,
                                          chunk_bytes=chunk_bytes, symmetric=symmetric, hardest=2)
                for q, p in ((query, passage), (query.double(), passage.double()))
            ]
            for name, actual, expected in zip(both[0]._fields, *both, strict=True):
                if actual.dtype.is_floating_point:
                    actual, expected = actual.clamp_min(-1e4), expected.clamp_min(-1e4)  # no hardest negative: -inf
                    rounded = dtype == torch.bfloat16 and name in ("query_grad", "passage_grad")
                    allowed = (4e-3 if rounded else 1e-5) * (expected.norm() + scale)
                    assert (actual - expected).norm() <= allowed, (rows, columns, width, dtype, name)
"""


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set(name, tmp_path):
    if not INSTRUCTION_SETS[name]:
        pytest.skip(f"this CPU has no {name}")
    environment = {"FASTDENSE_CPU_INSTRUCTION_SET": name}
    assert forked.run(["-c", COMPARE_WITH_FLOAT64], log=tmp_path / "log", environment=environment) == (0, "")


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
def test_wide_rows(oracle, draw, relative_error, dtype):
    """Wide rows: the left operand of a block of them fills the second-level cache."""
    query, passage = draw("random", 3, 1200, 4096, dtype)
    target = torch.tensor([5, 600, 1199])
    exact = oracle(query, passage, target, scale=20.0)
    result = contrastive_loss_and_grad(query, passage, target, scale=20.0, implementation="native")
    for name in exact._fields:
        rounded = dtype == torch.bfloat16 and name in ("query_grad", "passage_grad")
        assert relative_error(getattr(result, name), getattr(exact, name)) < (4e-3 if rounded else 5e-6), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [512, 513, 1100])
@pytest.mark.parametrize("symmetric", [False, True])
def test_more_queries_than_a_product_takes_at_once(oracle, draw, relative_error, dtype, rows, symmetric):
    """The passages' gradients are sums over a chunk's queries, of which AVX2 packs 512 at a time; ragged in width."""
    query, passage = draw("trained", rows, 150, 40, dtype)
    target = (torch.arange(rows) * 7 + 3) % 150
    options = {"scale": 10.0, "symmetric": symmetric}
    exact = oracle(query, passage, target, **options)
    result = contrastive_loss_and_grad(query, passage, target, **options, implementation="native")
    for name in exact._fields:
        rounded = dtype == torch.bfloat16 and name in ("query_grad", "passage_grad")
        assert relative_error(getattr(result, name), getattr(exact, name)) < (4e-3 if rounded else 5e-6), name


@pytest.mark.parametrize("columns", [111, 112, 113, 224, 500])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("rows", [40, 80])
def test_segments_of_passages(oracle, draw, relative_error, columns, options, rows):
    """With so little memory, exponentials are kept for 112 passages at a time."""
    query, passage = draw("random", rows, columns, 20)
    target = (torch.arange(rows) * 17 + columns - 1) % columns
    options = {"scale": 10.0, "passage_id": torch.arange(columns) % 60, **options}
    exact = oracle(query, passage, target, **options)
    result = contrastive_loss_and_grad(query, passage, target, **options, implementation="native", chunk_bytes=1)
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(3, 900, 100), (30, 901, 410), (70, 900, 100), (200, 333, 800), (1100, 120, 40)]
)
def test_the_number_of_threads_does_not_show_in_the_bits(draw, dtype, rows, columns, width):
    query, passage = draw("trained", rows, columns, width, dtype)
    target = torch.arange(rows) % columns
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(contrastive_loss_and_grad(query, passage, target, scale=20.0, implementation="native"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


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
