"""Which rows run together: chunks planned by length, each padded to its own longest row."""

from collections.abc import Mapping

import torch
from torch import Tensor


def plan_chunks(lengths: Tensor, max_rows: int, max_tokens: int | None = None) -> list[Tensor]:
    """Divide the rows of a padded batch into chunks of similar length.

    Args:
        lengths: int [B], tokens of each row.
        max_rows: rows of a chunk, at most.
        max_tokens: padded tokens of a chunk (its rows times its longest row), at most. A single row that is longer
            gets a chunk of its own.

    Returns:
        int64 row indices (on the CPU), one tensor a chunk; each row is in exactly one of them. Longest rows first,
        rows of equal length in their order: an out-of-memory error comes with the first chunk or not at all, and the
        remainder, which :func:`cached_forward` runs together with the other side's, holds the shortest rows.

    Raises:
        ValueError: ``lengths`` is not one-dimensional, or a limit is less than 1.
    """
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have one dimension, not {lengths.dim()}")
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, not {max_rows}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    sorted_lengths, order = torch.sort(lengths.cpu(), descending=True, stable=True)
    limits = _chunk_sizes(sorted_lengths.tolist(), max_rows, max_tokens)
    return list(order.split(limits)) if limits else []


def _chunk_sizes(descending: list[int], max_rows: int, max_tokens: int | None) -> list[int]:
    sizes = []
    start = 0
    while start < len(descending):
        rows = max_rows
        if max_tokens is not None:  # the first row of a chunk is its longest
            rows = min(max_rows, max(1, max_tokens // max(1, descending[start])))
        sizes.append(min(rows, len(descending) - start))
        start += sizes[-1]
    return sizes


def token_spans(attention_mask: Tensor) -> Tensor:
    """The columns that each row of a padded batch uses, padding on either side.

    Args:
        attention_mask: [B, L], nonzero at tokens.

    Returns:
        int64 [B, 2] on the CPU: first column, and one past the last column. A row without tokens is (L, 0).
    """
    used = attention_mask != 0
    length = used.shape[1]
    columns = torch.arange(length, device=used.device)
    first = torch.where(used, columns, length).amin(dim=1)
    end = torch.where(used, columns + 1, 0).amax(dim=1)
    return torch.stack([first, end], dim=1).cpu()  # one transfer: on a GPU this waits for the device


def take_rows(batch: Mapping[str, Tensor], rows: Tensor, spans: Tensor | None = None) -> dict[str, Tensor]:
    """Some rows of a padded batch, without the columns that are padding in all of them.

    Args:
        batch: tensors [B, ...], among them ``attention_mask`` [B, L]. Tensors [B, L, ...] lose the same columns.
        rows: int64 [R], row indices.
        spans: the batch's :func:`token_spans`, where they are already known.

    Returns:
        The batch's keys with tensors [R, L', ...], L' >= 1, or [R, ...].
    """
    mask = batch["attention_mask"]
    if spans is None:
        spans = token_spans(mask)
    first, end = int(spans[rows, 0].amin()), int(spans[rows, 1].amax())
    if first >= end:  # no row has a token; an encoder still needs a column
        first, end = 0, 1
    rows = rows.to(mask.device, non_blocking=True)
    return {
        name: tensor[:, first:end].index_select(0, rows)
        if tensor.shape[:2] == mask.shape
        else tensor.index_select(0, rows)
        for name, tensor in batch.items()
    }
