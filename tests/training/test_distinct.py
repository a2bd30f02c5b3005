"""Equal rows are encoded once, and what they are is known on the host."""

import pickle

import pytest
import torch
from accelerate.utils import send_to_device
from transformers import AutoTokenizer

from fastdense.data.collation import pad
from fastdense.data.training_set import Example
from fastdense.training.distinct import SIDES, DescribingCollator, DistinctRows, HostRows

TEXTS = [[5, 6, 7], [5, 6], [5, 6, 7], [5, 6, 0], [5, 6], [5, 6, 7]]  # 0 is the padding's id, and a token


def test_the_host_knows_lengths_and_copies():
    rows = HostRows.of(pad(TEXTS, pad_id=0))
    assert rows.lengths == [3, 2, 3, 3, 2, 3]
    assert rows.first_copy == [0, 1, 0, 3, 1, 0]


def test_copies_share_a_vector_and_their_gradients_are_summed():
    inputs = pad(TEXTS, pad_id=0)
    distinct = DistinctRows(inputs, HostRows.of(inputs))
    assert distinct.inputs["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0], [5, 6, 0]]
    assert distinct.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert distinct.lengths == [3, 2, 3]
    vectors = torch.rand(3, 4, requires_grad=True)
    gradients = torch.rand(6, 4)
    expanded = distinct.with_copies(vectors)
    assert torch.equal(expanded, vectors[[0, 1, 0, 2, 1, 0]])
    expanded.backward(gradients)
    torch.testing.assert_close(distinct.summed(gradients), vectors.grad)


def test_a_batch_without_copies_is_left_alone():
    inputs = pad([[1], [2, 3]], pad_id=0)
    distinct = DistinctRows(inputs, HostRows.of(inputs))
    vectors = torch.rand(2, 4)
    assert distinct.inputs is inputs
    assert distinct.with_copies(vectors) is vectors
    assert distinct.summed(vectors) is vectors


@pytest.fixture
def batch(tiny_bert_dir):
    collator = DescribingCollator(AutoTokenizer.from_pretrained(tiny_bert_dir), q_max_len=8, p_max_len=5)
    # Cut to the maximum length, the second passage is the first.
    passages = [[11, 12, 13, 14], [11, 12, 13, 15]]
    return collator([Example(query=[21], passages=passages, identities=[1, 2])])


def test_the_collator_says_what_the_encoder_will_see(batch):
    assert {side: batch["rows"][side] for side in SIDES} == {side: HostRows.of(batch[side]) for side in SIDES}
    assert batch["rows"]["passage"].first_copy == [0, 0]


def test_what_the_host_knows_stays_on_the_host(batch, monkeypatch):
    """From a loader's worker through pinning to the device: tensors move, and nothing else does."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())  # the real one needs a GPU
    moved = send_to_device(pin_memory(pickle.loads(pickle.dumps(batch)), "cpu"), torch.device("meta"))
    assert moved["query"]["input_ids"].is_meta
    assert moved["rows"] == batch["rows"]
