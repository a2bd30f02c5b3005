"""The Triton implementation on a GPU: what neither the interpreter nor a compiler can show. Not yet run anywhere."""

import pytest
import torch

from fastdense import contrastive_loss, contrastive_loss_and_grad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIONS = {
    "plain": {},
    "ids": {"passage_id": torch.arange(600) % 400},
    "everything": {
        "passage_id": torch.arange(600) % 400,
        "weight": torch.arange(200) % 4 * 0.5,
        "label_smoothing": 0.1,
        "symmetric": True,
    },
}


def on_gpu(options):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in options.items()}


@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("kind", "scale"), [("random", 1.0), ("trained", 20.0), ("random", 100.0), ("raw", 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [72, 130])
def test_against_float64(oracle, draw, relative_error, rounding_of, choice, kind, scale, dtype, width):
    query, passage = draw(kind, 200, 600, width, dtype)
    exact = oracle(query, passage, scale=scale, **choice)
    result = contrastive_loss_and_grad(
        query.cuda(), passage.cuda(), scale=scale, implementation="triton", chunk_bytes=400_000, **on_gpu(choice)
    )
    for name in exact._fields:
        allowed = 1e-5 + (600 * scale * 2**-24 if kind == "raw" else 0)
        if name in ("query_grad", "passage_grad"):
            allowed += 1.5 * rounding_of("triton", dtype)
        assert relative_error(getattr(result, name).cpu(), getattr(exact, name)) < allowed, name


@pytest.fixture
def problem():
    """Query, passage and scale in bfloat16, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    query, passage = (
        torch.nn.functional.normalize(torch.randn(rows, 256, device="cuda", generator=generator), dim=1).bfloat16()
        for rows in (1000, 3000)
    )
    return query, passage, torch.tensor(20.0, device="cuda")


def test_same_inputs_same_bits(problem):
    query, passage, scale = problem
    first, second = (contrastive_loss_and_grad(query, passage, scale=scale, implementation="triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_nothing_waits_for_the_device(problem):
    query, passage, scale = problem
    query.requires_grad_()
    contrastive_loss(query, passage, scale=scale, implementation="triton").backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        contrastive_loss(query, passage, scale=scale, implementation="triton").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_captures_it(problem):
    query, passage, scale = problem
    expected = contrastive_loss_and_grad(query, passage, scale=scale, implementation="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = contrastive_loss_and_grad(query, passage, scale=scale, implementation="triton")
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_target_out_of_range_gives_nan():
    query, passage = torch.ones(2, 64, device="cuda"), torch.ones(4, 64, device="cuda")
    target = torch.tensor([0, 99], device="cuda")
    assert contrastive_loss_and_grad(query, passage, target, implementation="triton").loss.isnan()


def test_more_scores_than_32_bits_count():
    """One chunk of more than 2 ** 31 scores: 6 GB."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of GPU memory")
    query, passage = (torch.randn(rows, 64, device="cuda").bfloat16() for rows in (50_000, 60_000))
    whole = contrastive_loss_and_grad(
        query, passage, torch.arange(50_000, device="cuda"), scale=0.1, implementation="triton", chunk_bytes=2**34
    )
    parts = contrastive_loss_and_grad(
        query, passage, torch.arange(50_000, device="cuda"), scale=0.1, implementation="triton", chunk_bytes=2**29
    )
    for one, other in zip(whole[:4], parts[:4], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-7)


def test_memory_stays_within_the_budget():
    rows, columns, width, budget = 8192, 16384, 256, 2**26
    query, passage = (torch.randn(count, width, device="cuda").bfloat16() for count in (rows, columns))
    contrastive_loss_and_grad(query[:128], passage[:128], scale=0.1, implementation="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contrastive_loss_and_grad(query, passage, scale=0.1, implementation="triton", chunk_bytes=budget)
    gradients = (rows + columns) * width * 4
    once_more = columns * width * 4  # where this torch cannot add a product to float32
    assert torch.cuda.max_memory_allocated() - before <= gradients + 2 * budget + once_more
