"""What a kernel owes the pass over row chunks (exponential_pass.py): exponentials of scores, stored, and their sums."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastdense.loss.offsets import RowOffsets, exact_offset

ALIGNMENT = 16  # bytes, of rows: what tensor descriptors, asynchronous copies and vector stores need


class Chunk(NamedTuple):
    """A chunk of rows, and the passages."""

    query: Tensor
    """[rows, D], aligned."""
    passage: Tensor
    """[M, D], aligned."""
    target: Tensor
    """[rows], int32."""
    label: Tensor | None
    """[M], int32: columns with the label of a row's target are left out of the row."""
    scale: Tensor


class Exponentials(NamedTuple):
    """What one product leaves; all but ``stored`` are [rows]. "Others" are a row's columns but the target."""

    stored: Tensor
    """[rows, M]: exp(score - offset) of the others, 0 elsewhere; in the dtype of the queries."""
    offset: Tensor
    target_score: Tensor
    largest: Tensor
    """Of the others' scores."""
    total: Tensor
    """Sum of the others' exponentials."""
    stored_total: Tensor
    """Sum of what is stored, which is rounded."""
    moment: Tensor
    """Sum of the others' exponentials times (score - target_score)."""


class Kernels(Protocol):
    """A module with the kernels of one implementation."""

    TILE_ROWS: int
    TILE_COLUMNS: int
    """Of these there is one value of each sum for each row."""

    def exponentials(self, chunk: Chunk, guess: RowOffsets) -> Exponentials:
        """Compute the scores of a chunk and store their exponentials."""
        ...

    def subtract_smoothing(self, stored: Tensor, chunk: Chunk, gain: Tensor, share: Tensor) -> None:
        """``stored`` becomes stored * gain - share in each row's other columns."""
        ...


def aligned(tensor: Tensor) -> Tensor:
    """A tensor [rows, width] whose rows are aligned: itself, or a copy, with zeros up to a full alignment."""
    unit = ALIGNMENT // tensor.element_size()
    missing = -tensor.shape[1] % unit or (unit if tensor.shape[1] == 0 else 0)
    if missing:
        return torch.nn.functional.pad(tensor, (0, missing))
    fits = tensor.stride(1) == 1 and tensor.stride(0) % unit == 0 and tensor.stride(0) >= tensor.shape[1]
    return (
        tensor if fits and tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)
    )


def empty_stored(chunk: Chunk) -> Tensor:
    """[rows, M] in the dtype of the queries, with aligned rows."""
    rows, columns = chunk.query.shape[0], chunk.passage.shape[0]
    unit = ALIGNMENT // chunk.query.element_size()
    return chunk.query.new_empty(rows, -(-columns // unit) * unit)[:, :columns]


def choose_offset(guess: RowOffsets, maxima: Tensor, sums: Tensor) -> Tensor:
    """The bound's offset, or for the rows out of its range that of their log-sum-exp ([blocks, rows] each)."""
    return torch.where(guess.exact > 0, exact_offset(maxima, sums), guess.offset)


def gather(stored: Tensor, offset: Tensor, target_score: Tensor, reference: Tensor, partials: Tensor) -> Exponentials:
    """Add up, in order, what was found for each block of columns.

    ``partials`` is [4, blocks, rows]: the largest score, the sum of the exponentials, that of the stored ones, and that
    of the exponentials times (score - reference).
    """
    maxima, sums, stored_sums, moments = partials.unbind()
    total = sums.sum(0)
    # The moments are relative to a target score that was rounded otherwise.
    moment = moments.sum(0) + (reference - target_score) * total
    return Exponentials(stored, offset, target_score, maxima.amax(0), total, stored_sums.sum(0), moment)
