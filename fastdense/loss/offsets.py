"""What to subtract from a row's scores before exp, without having seen them.

Let B = scale * |q| * max_j |p_j|: no score of the row exceeds it. Let s be the target's score. The row's largest score
lies between s and B, so with offset (s + B) / 2 its exponent lies within +-(B - s) / 2. Where B - s <= 2 * REACH:

- exp does not overflow, and neither do sums of a million such terms times passages with entries of a thousand:
  55 + ln 1e6 + ln 1e3 = 75.7 < 88.7 = ln of the largest float32 (and bfloat16);
- the target's exponential is at least exp(-55), so what is lost below exp(-87), the smallest normal number, is less
  than exp(-32) = 1e-14 of the row's sum each;
- 1 / sum, which multiplies the queries of the other product, is no less than exp(-55) / 1e6 = exp(-69), and keeps
  18 powers of e above the smallest normal number for a query's small entries and for its weight.

Unit vectors at scales up to 55 always qualify, and at scale 100 where the target's cosine is above -0.1. Other rows
(raw dot products of untrained models) get their exact log-sum-exp, as all rows do in float16 and float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

REACH = 55.0
PEAK = 2.0**15  # a row's exponentials then add up to this: float16 holds 2 ** -39 to 1 of it


class RowOffsets(NamedTuple):
    """Of each row of a chunk: [rows] each."""

    target_score: Tensor
    """By a product of its own: nearly, but not bit for bit, the one among the row's scores."""
    offset: Tensor
    """The bound's."""
    exact: Tensor
    """Whether the row needs its log-sum-exp, int8."""


def row_offsets(chunk: Tensor, of_target: Tensor, scale: Tensor, longest: Tensor, always_exact: bool) -> RowOffsets:
    """Offsets for queries ``chunk`` [rows, D], whose targets' passages are ``of_target`` [rows, D] in float32.

    ``longest`` [] is max |p|.
    """
    target_score = torch.linalg.vecdot(chunk.float(), of_target) * scale
    bound = torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float32) * longest * scale
    # Written so that nan needs the exact path.
    exact = ~(bound - target_score <= 2 * REACH)
    if always_exact:
        exact = torch.ones_like(exact)
    return RowOffsets(target_score, (target_score + bound) / 2, exact.to(torch.int8))


def exact_offset(maxima: Tensor, sums: Tensor) -> Tensor:
    """[rows]: the offset that makes a row's exponentials add up to PEAK, from [blocks, rows] partial results."""
    largest = maxima.amax(0)
    reference = largest.masked_fill(largest == -torch.inf, 0.0)  # no other column takes part
    total = (sums * torch.exp(maxima - reference)).sum(0)
    offset = reference + torch.log(total / PEAK)
    return offset.masked_fill(largest == -torch.inf, 0.0)
