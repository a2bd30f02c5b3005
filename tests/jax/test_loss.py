"""The loss for JAX in both its forms, against the reference for torch in float64."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec

import fastdense
from fastdense.jax import pallas
from fastdense.jax.loss import ContrastiveResult, contrastive_loss, contrastive_loss_and_grad, pick
from fastdense.jax.mesh import make_mesh

FIXED = ("label_smoothing", "symmetric", "reduction", "implementation", "chunk_bytes")
COMPARED = ("loss", "query_grad", "passage_grad", "scale_grad", "log_normalizer", "target_score")
ask = jax.jit(contrastive_loss_and_grad, static_argnames=FIXED)

OPTIONS = {
    "default target": {},
    "ids and any target": {"passage_id": "some", "target": "some"},
    "weighted sum": {"reduction": "sum", "weight": "some"},
    "smoothing": {"label_smoothing": 0.1},
    "symmetric": {"symmetric": True, "target": "some"},
    "all": {"symmetric": True, "target": "some", "passage_id": "some", "weight": "some", "label_smoothing": 0.2},
}


@pytest.fixture(params=["xla", "pallas"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form in turn; the kernels run in Pallas' interpreter."""
    monkeypatch.setattr(pallas, "INTERPRET", True)
    return request.param


def draw(kind: str, rows: int, columns: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Query and passage, float32: "random" or "trained" unit vectors, or "raw" ones with dot products near 300."""
    rng = np.random.default_rng(rows)
    query, passage = rng.standard_normal((rows, width)), rng.standard_normal((columns, width))
    if kind == "raw":
        common = rng.standard_normal(width) * (300 / width) ** 0.5
        query, passage = query / 2 + common, passage / 2 + common
    else:
        if kind == "trained":
            passage[last_target(rows, columns)] += query
        query /= np.linalg.norm(query, axis=1, keepdims=True)
        passage /= np.linalg.norm(passage, axis=1, keepdims=True)
    return query.astype(np.float32), passage.astype(np.float32)


def last_target(rows: int, columns: int) -> np.ndarray:
    return (np.arange(rows) * 7 + columns - 1) % columns


def some(choice: dict[str, Any], rows: int, columns: int) -> dict[str, Any]:
    drawn = {
        "target": (np.arange(rows) * 5) % (columns // 2),
        "passage_id": np.arange(columns) % (columns // 3),
        "weight": (np.arange(rows) % 4 * 0.5).astype(np.float32),
    }
    return {name: drawn[name] if value == "some" else value for name, value in choice.items()}


def torch_reference(query: Any, passage: Any, target: Any = None, dtype: Any = torch.float64, **options: Any) -> Any:
    def tensor(value: Any) -> Any:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    query, passage = (torch.from_numpy(np.asarray(array, np.float32)).to(dtype) for array in (query, passage))
    options = {name: tensor(value) for name, value in options.items()}
    return fastdense.contrastive_loss_and_grad(query, passage, tensor(target), implementation="reference", **options)


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_float32_is_as_exact_as_torch(implementation: str, kind: str, scale: float) -> None:
    query, passage = draw(kind, 33, 70, 48)
    target = last_target(33, 70)
    exact = torch_reference(query, passage, target, scale=scale)
    plain = torch_reference(query, passage, target, torch.float32, scale=scale)
    result = ask(query, passage, target, scale=scale, implementation=implementation)
    rounding = 2e-6 + (600 * scale * 2**-24 if kind == "raw" else 0)  # that of a dot product near 300
    for name in COMPARED:
        assert getattr(result, name).dtype == jnp.float32
        allowed = 1.25 * relative_error(getattr(plain, name), getattr(exact, name)) + rounding
        assert relative_error(getattr(result, name), getattr(exact, name)) <= allowed, name
    if kind != "raw":
        np.testing.assert_array_equal(result.correct, exact.correct)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["random", "trained", "raw"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_half_precision_sums_in_float32(implementation: str, dtype: str, kind: str, scale: float) -> None:
    """Given the rounded inputs only exponentials are rounded; against the true ones that is within their rounding."""
    query, passage = draw(kind, 33, 70, 48)
    target = last_target(33, 70)
    true = torch_reference(query, passage, target, scale=scale)
    query, passage = (jnp.asarray(array, dtype) for array in (query, passage))
    rounded = torch_reference(query, passage, target, scale=scale)
    result = ask(query, passage, target, scale=scale, implementation=implementation)
    rounding = 4e-6 + (1200 * scale * 2**-24 if kind == "raw" else 0)
    for name in COMPARED:
        actual, expected = getattr(result, name), getattr(rounded, name)
        assert actual.dtype == jnp.float32
        added = 8e-3 if dtype == "bfloat16" and name in ("query_grad", "passage_grad") else 0
        assert relative_error(actual, expected) <= rounding + added, name
        if added:
            expected = getattr(true, name)
            assert relative_error(actual, expected) <= 2 * relative_error(getattr(rounded, name), expected), name


@pytest.mark.parametrize("choice", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_and_automatic_gradients(implementation: str, choice: dict[str, Any]) -> None:
    query, passage = draw("trained", 21, 63, 24)
    options = some(choice, 21, 63)
    exact = torch_reference(query, passage, scale=9.0, **options)
    fixed = {**options, "implementation": implementation, "chunk_bytes": 5000}

    @jax.jit
    def both(query: Any, passage: Any, scale: Any) -> tuple[ContrastiveResult, Any]:
        def tripled(*inputs: Any) -> jax.Array:
            return 3 * contrastive_loss(inputs[0], inputs[1], scale=inputs[2], **fixed)

        direct = contrastive_loss_and_grad(query, passage, scale=scale, **fixed)
        return direct, jax.value_and_grad(tripled, (0, 1, 2))(query, passage, scale)

    result, (loss, gradients) = both(query, passage, jnp.full((1,), 9.0))
    for name in COMPARED:
        assert relative_error(getattr(result, name), getattr(exact, name)) < 5e-6, name
    assert gradients[2].shape == (1,)
    direct = (result.query_grad, result.passage_grad, result.scale_grad.reshape(1))
    for automatic, expected in zip((loss, *gradients), (result.loss, *direct), strict=True):
        np.testing.assert_allclose(automatic, 3 * expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 7, 16), (5, 1, 16), (1, 1, 3), (300, 520, 24)])
def test_ragged_shapes(implementation: str, shape: tuple[int, int, int]) -> None:
    query, passage = draw("random", *shape)
    target = last_target(*shape[:2])
    exact = torch_reference(query, passage, target, scale=20.0)
    result = ask(query, passage, target, scale=20.0, implementation=implementation)
    for name in COMPARED:
        expected = getattr(exact, name)
        if expected.norm() == 0:  # a single column: nothing to learn
            assert not getattr(result, name).any()
        else:
            assert relative_error(getattr(result, name), expected) < 2e-6, name
    np.testing.assert_array_equal(result.correct, exact.correct)


def test_automatic_gradients_have_the_dtype_of_their_inputs() -> None:
    query, passage = (jnp.asarray(array, jnp.bfloat16) for array in draw("random", 4, 8, 16))
    loss = jax.jit(jax.grad(lambda *x: contrastive_loss(*x[:2], scale=x[2]), (0, 1, 2)))
    gradients = loss(query, passage, jnp.float16(5))
    assert [gradient.dtype.name for gradient in gradients] == ["bfloat16", "bfloat16", "float16"]


@pytest.mark.parametrize("chunk_bytes", [1, 16 * 63 * 4])
def test_the_chunk_size_does_not_show(chunk_bytes: int) -> None:
    query, passage = draw("trained", 21, 63, 24)
    options = {"scale": 20.0, "label_smoothing": 0.1, "implementation": "xla"}
    whole, part = (ask(query, passage, chunk_bytes=size, **options) for size in (None, chunk_bytes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), part, whole)


def products(function: Any, *arguments: Any) -> int:
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general[")


def test_three_products_and_never_all_scores() -> None:
    """Loss and gradients in one pass; the loss alone takes one product; memory is that of a chunk and a gradient."""
    rows, columns, width, chunk_bytes = 1024, 4096, 16, 2**20
    query, passage = jax.ShapeDtypeStruct((rows, width), "float32"), jax.ShapeDtypeStruct((columns, width), "float32")
    options = {"implementation": "xla", "chunk_bytes": chunk_bytes}
    direct = lambda *inputs: contrastive_loss_and_grad(*inputs, **options)  # noqa: E731
    loss = lambda *inputs: contrastive_loss(*inputs, **options)  # noqa: E731
    assert products(direct, query, passage) == products(jax.grad(loss, (0, 1)), query, passage) == 3
    assert products(loss, query, passage) == 1
    memory = jax.jit(direct).lower(query, passage).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * chunk_bytes + 4 * columns * width * 4 < rows * columns * 4 / 4


def test_a_tie_is_not_correct(implementation: str) -> None:
    result = ask(np.ones((4, 8), np.float32), np.ones((8, 8), np.float32), implementation=implementation)
    assert not result.correct.any()
    assert float(result.loss) == pytest.approx(np.log(8))


def test_ids_that_leave_only_the_target(implementation: str) -> None:
    query, passage = draw("raw", 6, 18, 16)
    ids = np.full(18, -3)
    result = ask(query, passage, scale=100.0, passage_id=ids, label_smoothing=0.1, implementation=implementation)
    assert result.correct.all()
    for value in result[:4]:
        np.testing.assert_allclose(value, 0, atol=1e-3)  # of sums of scores near 30000


def test_ids_of_64_bits_keep_them_all() -> None:
    query, passage = draw("random", 6, 18, 16)
    ids = np.arange(18) // 2
    short, long = (
        jax.jit(lambda *inputs, ids=i: contrastive_loss(*inputs, passage_id=ids))(query, passage)
        for i in (ids, ids * 2**32)
    )
    assert short == long


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_unsigned_ids_may_be_any(place: Any) -> None:
    """As int32, 2**31 would be the id of padding, and two passages that are nobody's target would go missing."""
    query, passage = draw("random", 6, 18, 16)
    ids = np.arange(18) // 2 + 2**31 - 2
    exact = float(contrastive_loss(query, passage, passage_id=ids))
    unsigned = place(ids.astype(np.uint32))
    for loss in (contrastive_loss, jax.jit(contrastive_loss)):
        assert float(loss(query, passage, passage_id=unsigned)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("gap", [60.0, 1000.0, 30000.0])
def test_a_target_far_below_or_far_above(implementation: str, gap: float) -> None:
    """Neither overflows, and what is left of a loss of exp(-gap) is right."""
    query = np.array([[1.0, 0.5]], np.float32)
    passage = np.array([[0.0, 0.0], [gap, 0.0], [gap, 1.0], [-gap, 0.0]], np.float32)
    for target in (np.array([0]), np.array([2])):
        exact = torch_reference(query, passage, target)
        result = ask(query, passage, target, implementation=implementation)
        for name in ("loss", "query_grad", "passage_grad", "scale_grad"):
            assert relative_error(getattr(result, name), getattr(exact, name)) < 1e-5, name


def test_a_tiny_loss_keeps_its_relative_precision(implementation: str) -> None:
    query, passage = np.array([[1.0]], np.float32), np.array([[1.0], [0.0]], np.float32)
    result = ask(query, passage, np.array([0]), scale=28.0, implementation=implementation)
    assert float(result.loss) == pytest.approx(np.exp(-28), rel=1e-6)
    assert float(result.query_grad[0, 0]) == pytest.approx(-28 * np.exp(-28), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_never_gives_a_number(implementation: str, bad: float) -> None:
    query, passage = draw("random", 9, 27, 16)
    query[4, 3] = bad
    result = ask(query, passage, implementation=implementation)
    assert not np.isfinite(result.loss)
    assert not np.isfinite(result.query_grad[4]).all()
    assert not np.isfinite(result.passage_grad).all()


@pytest.mark.parametrize("wrong", [-1, 27])
def test_a_target_out_of_range_that_cannot_be_checked_gives_nan(implementation: str, wrong: int) -> None:
    query, passage = draw("random", 9, 27, 16)
    target = np.arange(9)
    target[3] = wrong
    result = ask(query, passage, target, implementation=implementation)
    assert all(np.isnan(value).any() for value in result[:4])


def test_weights_of_zero(implementation: str) -> None:
    query, passage = draw("random", 9, 27, 16)
    nothing = ask(query, passage, weight=np.zeros(9, np.float32), implementation=implementation)
    assert not any(value.any() for value in nothing[:4])


@pytest.mark.parametrize("columns", [0, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_queries(columns: int, symmetric: bool) -> None:
    query, passage = np.ones((0, 8), np.float32), np.ones((columns, 8), np.float32)
    result = contrastive_loss_and_grad(query, passage, symmetric=symmetric)
    assert result.loss == 0
    assert (result.query_grad.shape, result.passage_grad.shape) == ((0, 8), (columns, 8))
    assert not result.passage_grad.any()


def test_on_eight_devices(implementation: str) -> None:
    """Each scores its own queries against all passages: gradients add up to those of one device."""
    query, passage = draw("trained", 32, 64, 16)
    target, ids = last_target(32, 64), np.arange(64) % 50
    options = {"scale": 20.0, "reduction": "sum", "label_smoothing": 0.1, "implementation": implementation}

    def on_a_device(query: Any, passage: Any, target: Any, ids: Any) -> Any:
        passage, ids = (jax.lax.all_gather(part, "data", tiled=True) for part in (passage, ids))
        result = contrastive_loss_and_grad(query, passage, target, passage_id=ids, **options)
        passage_grad = jax.lax.psum_scatter(result.passage_grad, "data", tiled=True)
        return jax.lax.psum(result.loss, "data"), result.query_grad, passage_grad, result.correct

    rows = PartitionSpec("data")
    specs = {"in_specs": (rows,) * 4, "out_specs": (PartitionSpec(), rows, rows, rows)}
    divided = jax.jit(jax.shard_map(on_a_device, mesh=make_mesh(), check_vma=False, **specs))
    found = divided(query, passage, target, ids)
    result = ask(query, passage, target, passage_id=ids, **options)
    expected = (result.loss, result.query_grad, result.passage_grad, result.correct)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


Q, P = np.ones((4, 8), np.float32), np.ones((12, 8), np.float32)
BAD = [
    ({"query": [[1.0]]}, TypeError, "query must be a jax.Array or a numpy.ndarray, got list"),
    ({"query": np.ones(8, np.float32)}, ValueError, r"query must have shape \[N, D\], got \[8\]"),
    ({"query": Q.astype(np.float64)}, TypeError, "query must be float32, bfloat16 or float16, got float64"),
    ({"query": Q.astype(np.float16)}, TypeError, "one dtype, got float16 and float32"),
    ({"query": np.ones((4, 9), np.float32)}, ValueError, r"same width D, got \[4, 9\] and \[12, 8\]"),
    ({"passage": P[:0]}, ValueError, "passage has no rows"),
    ({"passage": P[:11]}, ValueError, "multiple of the number of queries.*got 11 passages for 4 queries"),
    ({"target": np.zeros(5, int)}, ValueError, r"target must have.*shape \[4\], got \[5\]"),
    ({"target": np.zeros(4)}, TypeError, "target must have an integer dtype, got float64"),
    ({"target": jnp.array([0, 1, 2, 12])}, ValueError, r"target must lie in \[0, 12\), got values from 0 to 12"),
    ({"scale": 0.0}, ValueError, "scale .* greater than 0.*, got 0.0"),
    ({"scale": "20"}, TypeError, "scale must be a number or an array with one element, got str"),
    ({"scale": jnp.ones(2)}, ValueError, r"scale must be .* one element, got float32 \[2\]"),
    ({"scale": jnp.inf * jnp.ones(())}, ValueError, "scale .* finite .* got inf"),
    ({"passage_id": np.zeros(12)}, TypeError, "passage_id must have an integer dtype, got float64"),
    ({"passage_id": np.full(12, -(2**31), np.int32)}, ValueError, "passage_id must not be -2147483648"),
    ({"is_passage": np.ones(12)}, TypeError, "is_passage must have the dtype bool, got float64"),
    ({"weight": np.ones(4, int)}, TypeError, "weight must have a floating-point dtype, got int64"),
    ({"weight": np.array([1.0, 1, 1, -1])}, ValueError, "weight must be finite and not negative"),
    ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'.*log_normalizer - target_score"),
    ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be a positive number of bytes, got 0"),
    ({"implementation": "mosaic"}, ValueError, "implementation must be one of 'auto', 'xla', 'pallas', got 'mosaic'"),
    ({"implementation": "pallas"}, ValueError, "'pallas' cannot run here: its kernels are for TPUs, .* a cpu"),
]


@pytest.mark.parametrize("function", [contrastive_loss, contrastive_loss_and_grad])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_arguments(function: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(**{"query": Q, "passage": P, **arguments})


def test_auto_goes_by_the_device_that_will_run_it() -> None:
    tpu, cpu = (SimpleNamespace(platform=name, device_kind=name) for name in ("tpu", "cpu"))
    assert [pick(device, 768, "bfloat16") for device in (tpu, cpu)] == ["pallas", "xla"]
    assert pick(tpu, 100_000, "bfloat16") == "xla"
    with pytest.raises(ValueError, match="'pallas' cannot run here: no block of representations of width 100000"):
        contrastive_loss(
            np.ones((1, 100_000), np.float32), np.ones((1, 100_000), np.float32), implementation="pallas", device=tpu
        )
