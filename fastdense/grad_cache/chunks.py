"""Which rows run together: chunks planned by length, each padded to its own longest row."""

import math

import torch
from torch import Tensor


def plan_chunks(lengths: Tensor, max_rows: int | Tensor | None = None, max_tokens: int | None = None) -> list[Tensor]:
    """Divide the rows of a padded batch into chunks of similar length.

    Args:
        lengths: int [B], tokens of each row.
        max_rows: rows of a chunk, at most. Or, for rows of several kinds, int [B]: how many rows of its kind may fill a
            chunk; mixed rows divide a chunk among them.
        max_tokens: padded tokens of a chunk (its rows times its longest row), at most. A single row that is longer
            gets a chunk of its own.

    Returns:
        int64 row indices (on the CPU), one tensor a chunk; each row is in exactly one of them. Longest rows first,
        rows of equal length in their order: an out-of-memory error comes with the first chunk or not at all, and the
        remainder, in whose backward pass gradients are reduced, holds the shortest rows.

    Raises:
        ValueError: ``lengths`` is not one-dimensional, or a limit is less than 1.
    """
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have one dimension, not {lengths.dim()}")
    limits = torch.as_tensor(max(1, len(lengths)) if max_rows is None else max_rows)
    if limits.numel() and limits.min() < 1:
        raise ValueError(f"max_rows must be at least 1, not {int(limits.min())}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    descending, order = torch.sort(lengths.cpu(), descending=True, stable=True)
    if not len(order):
        return []
    # A chunk has room for `room`, of which a row takes room / (its max_rows): all of them integers.
    room = math.lcm(*limits.unique().tolist())
    taken = (room // limits).expand(len(order))[order].cumsum(0)
    return list(order.split(_chunk_sizes(descending, taken, room, max_tokens)))


def _chunk_sizes(descending: Tensor, taken: Tensor, room: int, max_tokens: int | None) -> list[int]:
    sizes: list[int] = []
    start = before = 0
    while start < len(descending):
        end = int(torch.searchsorted(taken, before + room, right=True))
        if max_tokens is not None:  # the first row of a chunk is its longest
            end = min(end, start + max(1, max_tokens // max(1, int(descending[start]))))
        sizes.append(end - start)
        start, before = end, int(taken[end - 1])
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
