"""Batches: order, special tokens, padding and targets."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdense.data.collation import Collator, pad
from fastdense.data.training_set import Example
from fastdense.errors import UserError

EXAMPLES = [
    Example(query=[11, 12, 13, 14, 15, 16], passages=[[21], [22, 23]], identities=[1, -(2**63)]),
    Example(query=[17], passages=[[24, 25, 26, 27, 28, 29, 30]], identities=[2**63 - 1]),
    Example(query=[18, 19], passages=[[31, 32], [33], [34]], identities=[4, 1, 6]),
]


def test_a_batch_by_hand(tokenizer: Any) -> None:
    batch = Collator(tokenizer, q_max_len=5, p_max_len=6)(EXAMPLES)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert batch["query"]["input_ids"].tolist() == [[cls, 11, 12, 13, sep], [cls, 17, sep, 0, 0], [cls, 18, 19, sep, 0]]
    assert batch["query"]["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert batch["passage"]["input_ids"].tolist() == [
        [cls, 21, sep, 0, 0, 0],
        [cls, 22, 23, sep, 0, 0],
        [cls, 24, 25, 26, 27, sep],
        [cls, 31, 32, sep, 0, 0],
        [cls, 33, sep, 0, 0, 0],
        [cls, 34, sep, 0, 0, 0],
    ]
    assert batch["target"].tolist() == [0, 2, 3]
    assert batch["passage_id"].tolist() == [1, -(2**63), 2**63 - 1, 4, 1, 6]


def test_keys_and_types(tokenizer: Any) -> None:
    batch = Collator(tokenizer, q_max_len=32, p_max_len=128)(EXAMPLES)
    assert set(batch) == {"query", "passage", "target", "passage_id"}
    assert set(batch["query"]) == set(batch["passage"]) == {"input_ids", "attention_mask"}
    tensors = [*batch["query"].values(), *batch["passage"].values(), batch["target"], batch["passage_id"]]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_scores_of_fewer_passages_end_with_minus_infinity(tokenizer: Any) -> None:
    scored = [replace(one, scores=[float(id_) for id_ in one.identities]) for one in (EXAMPLES[2], EXAMPLES[1])]
    batch = Collator(tokenizer, q_max_len=8, p_max_len=8)(scored)
    assert batch["teacher_score"].tolist() == [[4.0, 1.0, 6.0], [2.0**63, -torch.inf, -torch.inf]]


def test_padded_to_the_longest_only(tokenizer: Any) -> None:
    batch = Collator(tokenizer, q_max_len=32, p_max_len=128)(EXAMPLES)
    assert batch["query"]["input_ids"].shape == (3, 8)
    assert batch["passage"]["input_ids"].shape == (6, 9)


def test_padded_to_a_multiple(tokenizer: Any) -> None:
    batch = Collator(tokenizer, q_max_len=32, p_max_len=128, pad_to_multiple_of=8)(EXAMPLES)
    assert batch["query"]["input_ids"].shape == (3, 8)
    assert batch["passage"]["input_ids"].shape == (6, 16)


def test_equals_the_tokenizer_s_own_batch(tokenizer: Any) -> None:
    texts = ["castle of stone", "river", "who built the bridge with copper and amber"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    collate = Collator(tokenizer, q_max_len=8, p_max_len=8)
    batch = collate([Example(query, [query], [0]) for query in ids])
    own = tokenizer(texts, padding=True, truncation=True, max_length=8, return_tensors="pt")
    for side in ("query", "passage"):
        assert torch.equal(batch[side]["input_ids"], own["input_ids"])
        assert torch.equal(batch[side]["attention_mask"], own["attention_mask"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_targets_point_at_the_positives(tokenizer: Any, counts: list[int]) -> None:
    examples = [Example([5], [[100 + i], *[[5]] * (n - 1)], [0] * n) for i, n in enumerate(counts)]
    batch = Collator(tokenizer, q_max_len=4, p_max_len=4)(examples)
    positives = batch["passage"]["input_ids"][batch["target"], 1]
    assert positives.tolist() == [100 + i for i in range(len(counts))]


def test_pad_without_any_padding() -> None:
    padded = pad([[1, 2], [3, 4]], pad_id=0)
    assert padded["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert padded["attention_mask"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("flag", ["q_max_len", "p_max_len"])
def test_a_length_without_room(tokenizer: Any, flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag} is 1, but the tokenizer adds 2 special tokens"):
        Collator(tokenizer, **({"q_max_len": 32, "p_max_len": 128} | {flag: 1}))
