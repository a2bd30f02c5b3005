"""The collator's batches as arrays of few shapes, so that a run compiles its step a few times and never again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.int32]]


class Batch(NamedTuple):
    """A training batch of N rows for queries and M rows for passages, some of which may be padding.

    NumPy arrays on the host, then JAX's.
    """

    query: dict[str, Any]
    """``input_ids`` and ``attention_mask``, int32 [N, Lq]"""
    passage: dict[str, Any]
    """``input_ids`` and ``attention_mask``, int32 [M, Lp]"""
    target: Any
    """int32 [N], the row of each query's positive among the passages of all processes"""
    weight: Any
    """float32 [N], 1 for a query and 0 for padding"""
    passage_id: Any
    """int32 [M, 2], the two halves of the 64-bit number of a passage"""
    is_passage: Any
    """bool [M], false for padding, which is nobody's negative"""


def bucket(length: int, max_length: int) -> int:
    """The padded length for ``length`` tokens: a power of two or the middle between two, 16 at least.

    At most a third of a row's columns is padding then, and a run to 512 tokens knows 11 lengths. ``max_length`` is one
    of them, whatever it is, so that full batches waste nothing.
    """
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, max_length)


def pad_batch(
    batch: Mapping[str, Any],
    lengths: tuple[int, int],
    *,
    query_rows: int,
    passage_rows: int,
    pad_id: int,
    process_index: int = 0,
) -> Batch:
    """What :class:`fastdense.data.collation.Collator` returns, in one of the shapes of a run.

    Args:
        batch: tensors of one process on the CPU.
        lengths: columns of queries and passages, see :func:`bucket`.
        query_rows, passage_rows: N and M; what the batch lacks is padding.
        pad_id: the tokenizer's.
        process_index: the process whose batch it is: its passages stand behind those of all before it.
    """
    queries, passages = len(batch["target"]), len(batch["passage_id"])
    return Batch(
        query=_pad_inputs(batch["query"], (query_rows, lengths[0]), pad_id),
        passage=_pad_inputs(batch["passage"], (passage_rows, lengths[1]), pad_id),
        target=_pad_rows(batch["target"].numpy(), query_rows).astype(np.int32) + np.int32(process_index * passage_rows),
        weight=(np.arange(query_rows) < queries).astype(np.float32),
        passage_id=_pad_rows(batch["passage_id"].numpy(), passage_rows).view(np.int32).reshape(passage_rows, 2),
        is_passage=np.arange(passage_rows) < passages,
    )


def pad_sequences(sequences: Sequence[Sequence[int]], shape: tuple[int, int], pad_id: int) -> Inputs:
    """Token ids as ``input_ids`` and ``attention_mask``, int32 ``shape``, padded on the right and below."""
    inputs = {"input_ids": np.full(shape, pad_id, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    for row, sequence in enumerate(sequences):
        inputs["input_ids"][row, : len(sequence)] = sequence
        inputs["attention_mask"][row, : len(sequence)] = 1
    return _with_a_token(inputs, len(sequences))


def _pad_inputs(inputs: Mapping[str, Any], shape: tuple[int, int], pad_id: int) -> Inputs:
    fill = {"input_ids": pad_id, "attention_mask": 0}
    padded = {name: np.full(shape, fill[name], np.int32) for name in fill}
    for name, array in padded.items():
        rows, length = inputs[name].shape
        array[:rows, :length] = inputs[name].numpy()
    return _with_a_token(padded, rows)


def _with_a_token(inputs: Inputs, rows: int) -> Inputs:
    """Padding below ``rows`` gets one token: attention over nothing is not a number."""
    inputs["attention_mask"][rows:, 0] = 1
    return inputs


def _pad_rows(values: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.zeros(rows - len(values), np.int64)])
