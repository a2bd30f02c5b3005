import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdense.grad_cache import plan_chunks, take_rows, token_spans


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


@pytest.mark.parametrize("left", [False, True])
def test_taken_rows_lose_only_columns_that_are_padding_in_all_of_them(make_batch, left):
    batch = make_batch(9, 12, left=left)
    batch["token_type_ids"] = batch["input_ids"] + 100
    batch["weight"] = torch.arange(9.0)  # one number a row: no column to lose
    rows = torch.tensor([4, 1, 7])
    lengths = batch["attention_mask"].sum(1)[rows]
    width = int(lengths.max())

    taken = take_rows(batch, rows)

    kept = slice(12 - width, 12) if left else slice(0, width)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(taken[name], batch[name][rows, kept])
    assert taken["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert taken["weight"].tolist() == [4, 1, 7]


def test_rows_without_tokens_keep_one_column():
    batch = {"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.zeros(2, 5).long()}
    assert take_rows(batch, torch.tensor([1]))["input_ids"].shape == (1, 1)


def test_an_empty_row_does_not_widen_a_left_padded_chunk():
    batch = {"attention_mask": torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])}
    assert take_rows(batch, torch.tensor([0, 1]))["attention_mask"].tolist() == [[0, 0], [1, 1]]
