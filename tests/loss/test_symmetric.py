"""Both directions in one walk: the same numbers whatever part of the scores the budget keeps."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdense import contrastive_loss_and_grad
from fastdense.loss.extras import with_extras
from fastdense.loss.implementations import reference

# Of 300 x 300 float32 scores and what a chunk of them needs: nothing is kept, something, everything.
BUDGETS = {"none": 1, "some": 400_000, "all": 2**24}


def targets(kind, rows, columns):
    return {
        "own": torch.arange(rows) % columns,
        "shared": torch.arange(rows) // 3 * 5 % columns,  # three queries a target, which lie in one panel or in two
        "last": columns - 1 - torch.arange(rows) % 7,
    }[kind]


@pytest.mark.parametrize("chunk_bytes", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("kind", ["own", "shared", "last"])
@pytest.mark.parametrize("ids", [None, 120])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(300, 300, 12), (70, 500, 12), (8, 130, 5)])
def test_every_budget(implementation, oracle, draw, relative_error, chunk_bytes, kind, ids, smoothing, shape):
    rows, columns, _ = shape
    query, passage = draw("trained", *shape)
    options = {
        "scale": 9.0,
        "passage_id": None if ids is None else torch.arange(columns) % ids,
        "label_smoothing": smoothing,
        "weight": torch.arange(rows) % 4 * 0.5,
        "symmetric": True,
    }
    target = targets(kind, rows, columns)
    exact = oracle(query, passage, target, **options)
    result = contrastive_loss_and_grad(
        query, passage, target, implementation=implementation, chunk_bytes=chunk_bytes, **options
    )
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name


@pytest.mark.parametrize("chunk_bytes", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_as_exact_as_torch(implementation, oracle, draw, relative_error, chunk_bytes, kind, scale):
    query, passage = draw(kind, 150, 300, 24)
    exact = oracle(query, passage, scale=scale, symmetric=True)
    plain = oracle(query, passage, scale=scale, symmetric=True, dtype=torch.float32)
    result = contrastive_loss_and_grad(
        query, passage, scale=scale, symmetric=True, implementation=implementation, chunk_bytes=chunk_bytes
    )
    for name in exact._fields:
        allowed = 1.25 * relative_error(getattr(plain, name), getattr(exact, name)) + 2e-6
        allowed += 600 * scale * 2**-24 if kind == "raw" else 0
        assert relative_error(getattr(result, name), getattr(exact, name)) <= allowed, name


@pytest.mark.parametrize("chunk_bytes", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(implementation, oracle, draw, relative_error, rounding_of, chunk_bytes, dtype):
    query, passage = draw("trained", 150, 301, 24, dtype)
    target = targets("shared", 150, 301)
    exact = oracle(query, passage, target, scale=20.0, symmetric=True)
    result = contrastive_loss_and_grad(
        query, passage, target, scale=20.0, symmetric=True, implementation=implementation, chunk_bytes=chunk_bytes
    )
    for name in exact._fields:
        allowed = 5e-6 + (rounding_of(implementation, dtype) / 2 if name in ("query_grad", "passage_grad") else 0)
        assert relative_error(getattr(result, name), getattr(exact, name)) < allowed, name


@pytest.mark.parametrize("gap", [0.0, 60.0, 1000.0, 30000.0])
@pytest.mark.parametrize("shared", [False, True])
def test_scores_that_dwarf_their_row_or_their_column(implementation, oracle, relative_error, gap, shared):
    """What is nothing in its row may be everything in its column."""
    query = torch.tensor([[1.0, 0.0, 0.5], [gap, 1.0, 0.0], [-gap, 0.5, 1.0], [0.0, 0.0, 0.1]])
    passage = torch.tensor([[0.0, 0.0, 1.0], [gap, 0.5, 0.0], [1.0, 0.1, 0.0], [-1.0, 0.0, 0.2]])
    target = torch.tensor([1, 2, 1, 1] if shared else [0, 2, 1, 3])
    exact = oracle(query, passage, target, symmetric=True)
    result = contrastive_loss_and_grad(query, passage, target, symmetric=True, implementation=implementation)
    for name in exact._fields:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 1e-5, name


def test_ids_that_leave_only_the_targets(implementation, draw):
    query, passage = draw("random", 40, 80, 16)
    result = contrastive_loss_and_grad(
        query, passage, symmetric=True, passage_id=torch.full((80,), 7), implementation=implementation
    )
    for value in (result.loss, result.query_grad, result.passage_grad, result.scale_grad):
        assert value.count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_never_gives_a_number(implementation, draw, bad):
    query, passage = draw("random", 40, 80, 16)
    query[4, 3] = bad
    result = contrastive_loss_and_grad(query, passage, symmetric=True, implementation=implementation)
    assert not result.loss.isfinite()
    assert not result.query_grad[4].isfinite().all()
    assert not result.passage_grad.isfinite().all()


@pytest.mark.parametrize("columns", [128, 256])
def test_products_by_budget(draw, columns):
    """8 N M D operations where nothing is kept, 6 where everything is, (8 - 2 f) between: those of the reference."""
    rows, width = 128, 16
    query, passage = draw("random", rows, columns, width)
    asked = (query, passage, torch.arange(rows), torch.tensor(3.0), None, None, 0.0, True, True, True, True, 0)
    size = rows * columns * 4  # bytes
    for chunk_bytes, kept in ((2 * 6 * size // 8, 6 / 8), (2 * size, 1.0), (1, 0.0)):
        with FlopCounterMode(display=False) as counter:
            reference._contrastive(*asked, chunk_bytes)
        assert counter.get_total_flops() == (8 - 2 * kept) * rows * columns * width


@pytest.mark.parametrize("chunk_bytes", [500_000, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_show_in_the_bits(draw, dtype, chunk_bytes):
    query, passage = draw("trained", 200, 900, 100, dtype)
    target = targets("shared", 200, 900)
    options = {"scale": 20.0, "symmetric": True, "hardest": 3, "chunk_bytes": chunk_bytes, "implementation": "native"}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(contrastive_loss_and_grad(query, passage, target, **options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_two_directions_one_after_the_other(oracle, draw, relative_error):
    """For kernels that know one direction only: here the reference's, asked for that."""

    def one_direction(*arguments):
        *first, mean, query_grad, passage_grad, chunk_bytes = arguments
        asked = (False, mean, query_grad, passage_grad, 0, chunk_bytes, True)
        *result, by_products = torch.ops.fastdense.contrastive_reference(*first, *asked)
        return (*result, *by_products)

    query, passage = draw("trained", 21, 63, 24)
    target, ids = targets("shared", 21, 63), torch.arange(63) % 31
    exact = oracle(query, passage, target, scale=9.0, passage_id=ids, symmetric=True, label_smoothing=0.1)
    asked = (query, passage, target, torch.tensor(9.0), ids, None, 0.1, True, True)
    results = with_extras(one_direction)(*asked, True, True, 0, 1000)
    for name, actual in zip(exact._fields, results, strict=False):
        assert relative_error(actual, getattr(exact, name)) < 5e-6, name
    without = with_extras(one_direction)(*asked, False, False, 0, 1000)
    torch.testing.assert_close(without[0], results[0])
    assert without[1].numel() == without[2].numel() == 0


def test_memory_stays_within_the_budget():
    """8192 x 8192 scores are 256 MiB; in a process of its own, for the peak is the process's."""
    code = """
import resource, torch
from fastdense import contrastive_loss_and_grad
query, passage = torch.randn(8192, 8), torch.randn(8192, 8)
contrastive_loss_and_grad(query[:64], passage[:64], symmetric=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contrastive_loss_and_grad(query, passage, chunk_bytes=2**23, symmetric=True, hardest=4, implementation="native")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert int(done.stdout) < 40 * 1024  # KiB
