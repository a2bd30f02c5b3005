from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdense.grad_cache import plan_chunks, token_spans


@given(
    lengths=st.lists(st.integers(0, 40), max_size=50),
    max_rows=st.integers(1, 60),
    max_tokens=st.none() | st.integers(1, 200),
)
def test_a_plan_holds_every_row_once_within_its_limits(lengths, max_rows, max_tokens):
    chunks = plan_chunks(torch.tensor(lengths, dtype=torch.long), max_rows, max_tokens)

    rows = [row for chunk in chunks for row in chunk.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    assert rows == sorted(range(len(lengths)), key=lambda row: -lengths[row])  # longest first, stable
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_rows
        longest = max(lengths[row] for row in chunk.tolist())
        assert max_tokens is None or len(chunk) == 1 or len(chunk) * longest <= max_tokens


def test_a_plan_uses_the_room_it_has():
    lengths = torch.tensor([3, 3, 3, 3, 6, 6])
    assert [len(chunk) for chunk in plan_chunks(lengths, 4)] == [4, 2]
    assert [len(chunk) for chunk in plan_chunks(lengths, 4, max_tokens=12)] == [2, 4]
    assert [len(chunk) for chunk in plan_chunks(lengths, 100)] == [6]
    assert [len(chunk) for chunk in plan_chunks(lengths)] == [6]


@given(
    kinds=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=50),
    rows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_rows_of_two_kinds_divide_a_chunk_among_them(kinds, rows):
    lengths = torch.tensor([length for length, _ in kinds])
    limits = torch.tensor([rows[kind] for _, kind in kinds])
    chunks = plan_chunks(lengths, limits)
    shares = [sum(Fraction(1, int(limits[row])) for row in chunk) for chunk in chunks]
    assert max(shares) <= 1
    for share, chunk in zip(shares, chunks[1:], strict=False):
        assert share + Fraction(1, int(limits[chunk[0]])) > 1  # the next row did not fit
    assert torch.cat(chunks).tolist() == torch.sort(lengths, descending=True, stable=True).indices.tolist()


def test_an_empty_batch_has_no_chunks():
    assert plan_chunks(torch.empty(0, dtype=torch.long), 4) == []


@pytest.mark.parametrize(
    ("lengths", "limits", "message"),
    [
        ([1], {"max_rows": 0}, "max_rows must be at least 1, not 0"),
        ([1], {"max_rows": 1, "max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ([[1]], {"max_rows": 1}, "lengths must have one dimension, not 2"),
    ],
)
def test_impossible_limits_are_refused(lengths, limits, message):
    with pytest.raises(ValueError, match=message):
        plan_chunks(torch.tensor(lengths), **limits)


def test_spans_of_right_left_and_no_padding_and_of_an_empty_row():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert token_spans(mask).tolist() == [[0, 2], [2, 4], [0, 4], [4, 0]]
    assert token_spans(mask.bool()).tolist() == token_spans(mask).tolist()
