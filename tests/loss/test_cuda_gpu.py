"""The bfloat16 kernels of csrc/cuda on a GPU, each by name: what the emulation cannot show. Not yet run anywhere."""

import pytest
import torch

from fastdense import contrastive_loss_and_grad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIONS = {
    "plain": {},
    "everything": {
        "passage_id": torch.arange(600) % 400,
        "weight": torch.arange(200) % 4 * 0.5,
        "label_smoothing": 0.1,
    },
}


@pytest.fixture(params=["mma", "wgmma"])
def product(request, monkeypatch):
    """Asks for one kernel; wgmma's is for compute capability 9.0 alone."""
    if request.param == "wgmma" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    monkeypatch.setenv("FASTDENSE_CUDA_PRODUCT", request.param)
    return request.param


def native(query, passage, **options):
    moved = {name: value.cuda() if torch.is_tensor(value) else value for name, value in options.items()}
    return contrastive_loss_and_grad(query.cuda(), passage.cuda(), implementation="native", **moved)


@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("kind", "scale"), [("trained", 20.0), ("random", 100.0), ("raw", 1.0)])
@pytest.mark.parametrize("width", [8, 72, 330, 768])
@pytest.mark.usefixtures("product")
def test_against_float64(oracle, draw, relative_error, choice, kind, scale, width):
    query, passage = draw(kind, 200, 600, width, torch.bfloat16)
    exact = oracle(query, passage, scale=scale, **choice)
    result = native(query, passage, scale=scale, chunk_bytes=400_000, **choice)
    for name in exact._fields:
        # A tensor core cuts digits off its running sum, which a target's growing score feels every time.
        allowed = 1e-5 + scale * width * 2**-28 + (600 * scale * 2**-24 if kind == "raw" else 0)
        allowed += 6e-3 if name in ("query_grad", "passage_grad") else 0
        assert relative_error(getattr(result, name).cpu(), getattr(exact, name)) < allowed, name


@pytest.mark.usefixtures("product")
def test_same_inputs_same_bits(draw):
    query, passage = draw("random", 1000, 3000, 256, torch.bfloat16)
    first, *others = (native(query, passage, scale=20.0) for _ in range(5))
    for result in others:
        assert all(torch.equal(one, other) for one, other in zip(first, result, strict=True))


@pytest.mark.usefixtures("product")
def test_a_captured_graph_gives_the_same_bits(draw):
    query, passage = (tensor.cuda() for tensor in draw("random", 300, 900, 256, torch.bfloat16))
    scale = torch.tensor(20.0, device="cuda")
    expected = native(query, passage, scale=scale)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        native(query, passage, scale=scale)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = native(query, passage, scale=scale)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(expected, captured, strict=True))


@pytest.mark.parametrize("name", ["wgmma", "cublas"])
def test_a_product_that_cannot_run_is_refused_by_name(draw, monkeypatch, name):
    if name == "wgmma" and torch.cuda.get_device_capability() == (9, 0):
        pytest.skip("here it runs")
    monkeypatch.setenv("FASTDENSE_CUDA_PRODUCT", name)
    with pytest.raises(RuntimeError, match="FASTDENSE_CUDA_PRODUCT"):
        native(*draw("random", 4, 8, 64, torch.bfloat16), scale=1.0)
