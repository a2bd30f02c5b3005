"""From one hidden state per token to one vector per text."""

import torch
from torch import Tensor

POOLINGS = ("cls", "mean", "last")


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Reduce token states to text vectors; padding may be on the right or on the left.

    Args:
        hidden: token states [B, L, D].
        mask: attention mask [B, L], nonzero for real tokens. A row without any real token gives a finite vector.
        pooling: "cls" (first real token), "mean" (mean of the real tokens) or "last" (last real token).

    Returns:
        Vectors [B, D] of ``hidden``'s dtype. Means are summed in float32 if that is more precise.

    Raises:
        ValueError: ``pooling`` is none of the three.
    """
    if pooling == "cls":
        return _take(hidden, mask.ne(0).int().argmax(dim=1))
    if pooling == "last":
        from_the_end = mask.flip(1).ne(0).int().argmax(dim=1)
        return _take(hidden, mask.shape[1] - 1 - from_the_end)
    if pooling == "mean":
        return _mean(hidden, mask)
    raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")


def _take(hidden: Tensor, position: Tensor) -> Tensor:
    index = position.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask.ne(0).unsqueeze(-1).to(hidden.dtype)
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    total = (hidden * weight).sum(dim=1, dtype=accumulate)
    count = weight.sum(dim=1, dtype=accumulate).clamp(min=1)
    return (total / count).to(hidden.dtype)
