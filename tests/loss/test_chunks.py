"""Ragged shapes and chunk borders, drawn by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdense import contrastive_loss_and_grad


@st.composite
def problems(draw):
    rows = draw(st.integers(1, 80))
    columns = draw(st.integers(1, 70))
    integers = st.integers(0, columns - 1)
    return {
        "rows": rows,
        "columns": columns,
        "width": draw(st.integers(1, 20)),
        "seed": draw(st.integers(0, 1000)),
        "target": torch.tensor(draw(st.lists(integers, min_size=rows, max_size=rows))),
        "ids": draw(st.integers(1, columns)),
        "chunk_bytes": draw(st.integers(1, 12 * columns * rows)),
        "scale": draw(st.sampled_from([0.5, 1.0, 20.0, 100.0])),
        "smoothing": draw(st.sampled_from([0.0, 0.1])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "symmetric": draw(st.booleans()),
    }


def ask(function, query, passage, problem, **more):
    return function(
        query,
        passage,
        problem["target"],
        scale=problem["scale"],
        passage_id=torch.arange(problem["columns"]) % problem["ids"],
        label_smoothing=problem["smoothing"],
        symmetric=problem["symmetric"],
        **more,
    )


@settings(deadline=None, max_examples=150, derandomize=True)
@given(problem=problems())
def test_any_shape_with_any_chunk(implementations, rounding_of, oracle, draw, problem):
    query, passage = draw(
        "random", problem["rows"], problem["columns"], problem["width"], problem["dtype"], problem["seed"]
    )
    exact = ask(oracle, query, passage, problem)
    for name in implementations:
        result = ask(
            contrastive_loss_and_grad,
            query,
            passage,
            problem,
            implementation=name,
            chunk_bytes=problem["chunk_bytes"],
        )
        for field in exact._fields:
            actual, expected = getattr(result, field).double(), getattr(exact, field)
            size = problem["scale"] if field.endswith("_grad") else 1.0
            allowed = 3e-5 + rounding_of(name, problem["dtype"])
            assert (actual - expected).norm() <= allowed * (expected.norm() + size), (name, field)


def test_the_chunk_size_does_not_show_in_the_result(implementation, draw):
    query, passage = draw("trained", 37, 111, 24)
    whole = contrastive_loss_and_grad(query, passage, scale=20.0, implementation=implementation)
    for chunk_bytes in (1, 111 * 4 * 5, 111 * 4 * 37 - 1, 111 * 4 * 37):
        part = contrastive_loss_and_grad(
            query, passage, scale=20.0, implementation=implementation, chunk_bytes=chunk_bytes
        )
        for one, other in zip(part, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
