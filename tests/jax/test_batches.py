"""Batches in few shapes: what padding leaves alone, and how few shapes there are."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdense.jax.batches import bucket, pad_batch, pad_sequences
from fastdense.jax.train_step import number_rows


@given(st.integers(1, 600), st.integers(1, 600))
def test_a_bucket_holds_the_length_and_little_more(length: int, longest: int) -> None:
    length = min(length, longest)
    size = bucket(length, longest)
    assert length <= size <= longest
    assert size <= max(16, 1.5 * length)
    assert bucket(size, longest) == size


def test_there_are_few_buckets() -> None:
    assert len({bucket(length, 512) for length in range(1, 513)}) == 11
    assert bucket(129, 156) == 156


def collated(queries: int, passages: int) -> dict:
    def rows(count: int, length: int) -> dict:
        ids = torch.arange(count * length).reshape(count, length)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    identities = torch.arange(passages) - 2**62
    return {
        "query": rows(queries, 5),
        "passage": rows(passages, 7),
        "target": torch.arange(queries),
        "passage_id": identities,
    }


@pytest.mark.parametrize("process", [0, 2])
def test_padding_changes_no_row(process: int) -> None:
    given_, shape = collated(3, 6), {"query_rows": 4, "passage_rows": 8}
    batch = pad_batch(given_, (16, 24), **shape, pad_id=9, process_index=process)
    assert batch.query["input_ids"].shape == (4, 16)
    assert batch.passage["attention_mask"].shape == (8, 24)
    assert (batch.query["input_ids"][:3, :5] == given_["query"]["input_ids"].numpy()).all()
    assert (batch.query["input_ids"][:3, 5:] == 9).all()
    assert batch.query["attention_mask"].sum(axis=1).tolist() == [5, 5, 5, 1]
    assert batch.target[:3].tolist() == [8 * process + row for row in range(3)]
    assert batch.weight.tolist() == [1, 1, 1, 0]
    assert batch.is_passage.tolist() == [True] * 6 + [False] * 2
    assert (batch.passage_id[:6].reshape(-1).view(np.int64) == given_["passage_id"].numpy()).all()


def test_sequences_are_padded_on_the_right_and_below() -> None:
    inputs = pad_sequences([[5, 6], [7]], (3, 4), pad_id=1)
    assert inputs["input_ids"].tolist() == [[5, 6, 1, 1], [7, 1, 1, 1], [1, 1, 1, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.sampled_from([0, 1, -1, 2**32, 2**63 - 1, -(2**63)]), min_size=9, max_size=9))
def test_numbers_are_equal_where_identities_are(identities: list[int]) -> None:
    ids = np.array(identities)
    numbers = np.asarray(jax.jit(number_rows)(ids.view(np.int32).reshape(-1, 2)))
    assert ((numbers[:, None] == numbers) == (ids[:, None] == ids)).all()
