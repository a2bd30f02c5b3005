"""The rows that one encoder runs, in the order and in the chunks in which it runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdense.grad_cache.chunks import plan_chunks, token_spans

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Side:
    """The queries or the passages of a batch, and what limits their chunks."""

    name: str
    batch: Batch
    lengths: Sequence[int] | None
    """tokens of each row, padded on the right; None to ask the attention mask, for which a GPU is waited for"""
    max_rows: int | None

    def spans(self) -> Tensor:
        """int64 [rows, 2] on the CPU, see :func:`token_spans`."""
        mask = self.batch["attention_mask"]
        if not len(mask):
            raise ValueError(f"the {self.name} batch has no rows")
        if self.lengths is None:
            return token_spans(mask)
        ends = torch.as_tensor(self.lengths)
        if ends.shape != mask.shape[:1] or not 0 <= ends.min() <= ends.max() <= mask.shape[1]:
            raise ValueError(f"the {self.name} batch is {tuple(mask.shape)}, which does not fit its lengths")
        return torch.stack([torch.zeros_like(ends), ends], dim=1)


@dataclass(frozen=True)
class Chunk:
    """Rows of a sorted batch, and the columns that they use."""

    rows: slice
    columns: slice

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def padded_tokens(self) -> int:
        return (self.rows.stop - self.rows.start) * self.width


@dataclass(frozen=True)
class SortedOrder:
    """The order in which the chunks take the rows of all sides."""

    places: Sequence[Tensor]
    """of each side's rows among the sorted ones"""

    def apart(self, vectors: Tensor) -> list[Tensor]:
        """[rows, D] for each side in the order of its rows, from the sorted vectors of all."""
        return [vectors.index_select(0, places) for places in self.places]

    def sort(self, sides: Sequence[Tensor]) -> Tensor:
        """The way back from :meth:`apart`."""
        vectors = sides[0].new_empty(sum(map(len, sides)), *sides[0].shape[1:])
        for side, places in zip(sides, self.places, strict=True):
            vectors.index_copy_(0, places, side)
        return vectors


class Stream:
    """The rows of one or several sides, sorted by length and cut into chunks.

    Attributes:
        chunks: longest rows first.
        order: theirs, whose sorted rows a chunk's ``rows`` cut.
        rows: their number.
        tokens: of all rows, without padding.
    """

    def __init__(self, sides: Sequence[Side], max_tokens: int | None) -> None:
        rows = [len(side.batch["attention_mask"]) for side in sides]
        self.rows = sum(rows)
        spans = torch.cat([side.spans() for side in sides])
        lengths = (spans[:, 1] - spans[:, 0]).clamp(min=0)
        self.tokens = int(lengths.sum())
        planned = plan_chunks(lengths, _row_limits(sides, rows), _token_limit(sides, rows, spans, max_tokens))
        order = torch.cat(planned)
        device = sides[0].batch["attention_mask"].device
        self.device_type = device.type
        self.order = SortedOrder(to_device(order.argsort(), device).split(rows))
        # Sorted once, on the device: a chunk is then a slice, and nothing is sent to the device for it.
        merged = _concatenate([side.batch for side in sides])
        self._mask_shape = merged["attention_mask"].shape
        on_device = to_device(order, device)
        self._inputs = {name: tensor.index_select(0, on_device) for name, tensor in merged.items()}
        self.chunks = _chunks(planned, spans)

    def take(self, chunk: Chunk | None) -> dict[str, Tensor] | None:
        """A chunk's rows without the columns that are padding in all of them; None for None."""
        if chunk is None:
            return None
        taken = {name: tensor[chunk.rows] for name, tensor in self._inputs.items()}
        return {
            name: tensor[:, chunk.columns].contiguous() if self._inputs[name].shape[:2] == self._mask_shape else tensor
            for name, tensor in taken.items()
        }


def to_device(indices: Tensor, device: torch.device) -> Tensor:
    """Indices from the host, without waiting for what the device has yet to do."""
    if device.type == "cuda":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)


def _row_limits(sides: Sequence[Side], rows: Sequence[int]) -> Tensor | None:
    if all(side.max_rows is None for side in sides):
        return None
    total = sum(rows)  # as good as no limit
    limits = [total if side.max_rows is None else side.max_rows for side in sides]
    return torch.tensor(limits).repeat_interleave(torch.tensor(rows))


def _token_limit(sides: Sequence[Side], rows: Sequence[int], spans: Tensor, max_tokens: int | None) -> int | None:
    """Mixed rows are padded to the longest of both sides: not to more than a chunk of one side alone would hold."""
    if len(sides) == 1 or any(side.max_rows is None for side in sides):
        return max_tokens
    longest = [int(part[:, 1].amax()) for part in spans.split(list(rows))]
    largest = max(1, *(int(side.max_rows or 0) * length for side, length in zip(sides, longest, strict=True)))
    return largest if max_tokens is None else min(largest, max_tokens)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, as wide as the widest."""
    if len(batches) == 1:
        return batches[0]
    names = [sorted(batch) for batch in batches]
    if any(other != names[0] for other in names):
        raise ValueError(f"queries and passages of one encoder must have the same entries, not {names}")
    width = max(batch["attention_mask"].shape[1] for batch in batches)
    return {name: torch.cat([_widened(batch, name, width) for batch in batches]) for name in batches[0]}


def _widened(batch: Batch, name: str, width: int) -> Tensor:
    tensor, shape = batch[name], batch["attention_mask"].shape
    if tensor.shape[:2] != shape:
        return tensor
    return F.pad(tensor, (*(0, 0) * (tensor.dim() - 2), 0, width - shape[1]))


def _chunks(planned: Sequence[Tensor], spans: Tensor) -> list[Chunk]:
    chunks, start = [], 0
    for rows in planned:
        first, end = int(spans[rows, 0].amin()), int(spans[rows, 1].amax())
        if first >= end:  # no row has a token; an encoder still needs a column
            first, end = 0, 1
        chunks.append(Chunk(slice(start, start + len(rows)), slice(first, end)))
        start += len(rows)
    return chunks
