"""Rows sorted into chunks, and back."""

import pytest
import torch

from fastdense.grad_cache import stream
from fastdense.grad_cache.stream import Side, Stream


def side(batch, max_rows=None, lengths=None, name="query"):
    return Side(name, batch, lengths, max_rows)


@pytest.mark.parametrize("left", [False, True])
def test_a_chunk_loses_only_columns_that_are_padding_in_all_of_its_rows(make_batch, left):
    batch = make_batch(9, 12, left=left)
    batch["token_type_ids"] = batch["input_ids"] + 100
    batch["weight"] = torch.arange(9.0)  # one number a row: no column to lose
    rows = Stream([side(batch, 4)], None)
    for chunk in rows.chunks:
        taken = rows.take(chunk)
        origin = taken["weight"].long()
        width = int(batch["attention_mask"][origin].sum(1).max())
        kept = slice(12 - width, 12) if left else slice(0, width)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(taken[name], batch[name][origin, kept])
            assert taken[name].is_contiguous()
        assert chunk.padded_tokens == taken["attention_mask"].numel()
    assert rows.tokens == batch["attention_mask"].sum()


def test_rows_without_tokens_keep_one_column():
    batch = {"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.zeros(2, 5).long()}
    rows = Stream([side(batch)], None)
    assert rows.take(rows.chunks[0])["input_ids"].shape == (2, 1)


def test_an_empty_row_does_not_widen_a_left_padded_chunk():
    rows = Stream([side({"attention_mask": torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])})], None)
    assert rows.take(rows.chunks[0])["attention_mask"].tolist() == [[1, 1], [0, 0]]


def test_two_sides_share_chunks_and_come_back_apart(make_batch):
    query, passage = make_batch(7, 5, seed=1), make_batch(12, 9, seed=2)
    rows = Stream([side(query, name="query"), side(passage, name="passage")], 30)
    outputs = [rows.take(chunk)["input_ids"].sum(1, keepdim=True) for chunk in rows.chunks]
    expected = [batch["input_ids"].sum(1, keepdim=True) for batch in (query, passage)]
    for found, wanted in zip(rows.order.apart(torch.cat(outputs)), expected, strict=True):
        assert torch.equal(found, wanted)
    sorted_again = rows.order.sort(expected)
    for chunk, output in zip(rows.chunks, outputs, strict=True):
        assert torch.equal(sorted_again[chunk.rows], output)
        assert chunk.padded_tokens <= 30


def test_mixed_rows_take_no_more_room_than_a_chunk_of_either_side():
    """128 queries of 4 tokens fill a chunk, or 4 passages of 16: not 96 queries beside one passage of 16."""
    query = {"attention_mask": torch.ones(200, 4).long()}
    passage = {"attention_mask": torch.ones(1, 16).long()}
    rows = Stream([side(query, 128), side(passage, 4)], None)
    assert max(chunk.padded_tokens for chunk in rows.chunks) <= 128 * 4


def test_known_lengths_spare_a_look_at_the_mask(make_batch, monkeypatch):
    batch = make_batch(9, 12)
    expected = Stream([side(batch, 4)], None).chunks
    monkeypatch.delattr(stream, "token_spans")  # on a GPU it would wait for the device
    assert Stream([side(batch, 4, batch["attention_mask"].sum(1).tolist())], None).chunks == expected


@pytest.mark.parametrize("lengths", [[1, 2], [1, 2, 9], [-1, 0, 1]])
def test_lengths_of_another_batch_are_refused(make_batch, lengths):
    with pytest.raises(ValueError, match=r"the query batch is \(3, 8\), which does not fit its lengths"):
        Stream([side(make_batch(3, 8), lengths=lengths)], None)


def test_sides_of_one_encoder_have_the_same_entries(make_batch):
    other = make_batch(3, 8) | {"token_type_ids": torch.zeros(3, 8)}
    with pytest.raises(ValueError, match="queries and passages of one encoder must have the same entries"):
        Stream([side(make_batch(3, 8)), side(other)], None)
