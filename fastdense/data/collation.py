"""Examples to the tensors of one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fastdense.data.tokenization import SpecialTokens
from fastdense.data.training_set import Example


class Collator:
    """Adds special tokens, cuts to the maximum lengths and pads on the right to the longest of the batch.

    A call with N examples of M passages in all returns

    - ``query`` and ``passage``: ``input_ids`` and ``attention_mask``, int64 [N, Lq] and [M, Lp]; passages in
      the order of their queries, positive first
    - ``target``: int64 [N], the row of each query's positive among the passages
    - ``passage_id``: int64 [M], equal for equal passages
    - ``teacher_score``, if the examples carry scores: float32 [N, most passages of an example], those of each query's
      passages in their order, -inf where a query has fewer

    M is N times ``train_n_passages`` unless rows lack negatives. With ``pad_to_multiple_of`` lengths are rounded up to
    a multiple of it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        q_max_len: int,
        p_max_len: int,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.special_tokens = SpecialTokens.of(tokenizer)
        self.special_tokens.check_length(q_max_len, "q_max_len")
        self.special_tokens.check_length(p_max_len, "p_max_len")
        self.q_max_len = q_max_len
        self.p_max_len = p_max_len
        self.pad_id = pad_token_id(tokenizer)
        self.pad_to_multiple_of = pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        counts = torch.tensor([len(example.passages) for example in examples])
        batch = {
            "query": self._pad([example.query for example in examples], self.q_max_len),
            "passage": self._pad([ids for example in examples for ids in example.passages], self.p_max_len),
            "target": counts.cumsum(0) - counts,
            "passage_id": torch.tensor([number for example in examples for number in example.identities]),
        }
        scores = [torch.tensor(example.scores) for example in examples if example.scores is not None]
        if scores:
            batch["teacher_score"] = pad_sequence(scores, batch_first=True, padding_value=-torch.inf)
        return batch

    def _pad(self, sequences: list[list[int]], max_length: int) -> dict[str, Tensor]:
        framed = [self.special_tokens.frame(ids, max_length) for ids in sequences]
        return pad(framed, self.pad_id, self.pad_to_multiple_of)


def pad(sequences: Sequence[Sequence[int]], pad_id: int, multiple_of: int = 1) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [len(sequences), longest], padded on the right with ``pad_id``."""
    longest = max(map(len, sequences))
    width = -(-longest // multiple_of) * multiple_of
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    for row, ids in zip(input_ids, sequences, strict=True):
        row[: len(ids)] = ids
    lengths = torch.tensor([len(ids) for ids in sequences])
    attention_mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": attention_mask}


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's padding id; many decoders have none, and get their end-of-text id or else 0.

    Which id it is does not matter to the model: padding is masked.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0
