"""What the host knows about a batch's rows, and encoding equal rows once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdense.data.collation import Collator
from fastdense.data.training_set import Example
from fastdense.grad_cache.stream import to_device

SIDES = ("query", "passage")


@dataclass(frozen=True)
class HostRows:
    """Lengths and copies of a batch's queries or passages.

    Chunks are planned from it while a GPU still computes the step before: no question about the batch waits for it.
    """

    lengths: list[int]
    """tokens of each row"""
    first_copy: list[int]
    """for each row the first row that is equal to it, itself if there is none before"""

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> "HostRows":
        """Of rows that are padded on the right. Waits for the device, if they are on one."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows = inputs["input_ids"].numpy(force=True)
        seen: dict[bytes, int] = {}
        copies = [seen.setdefault(row[:n].tobytes(), i) for i, (row, n) in enumerate(zip(rows, lengths, strict=True))]
        return cls(lengths, copies)


class DescribingCollator(Collator):
    """A :class:`Collator` that adds ``rows``: the :class:`HostRows` of ``query`` and ``passage``, which stay on the
    host. In a data loader's workers they cost the training process nothing."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        batch = super().__call__(examples)
        return {**batch, "rows": {side: HostRows.of(batch[side]) for side in SIDES}}


class DistinctRows:
    """The rows of one side without copies.

    Copies share one representation, hence one dropout mask, and the sum of their gradients goes through it. Queries
    and passages are never taken for copies of each other: two views of a text under different dropout stay two views.

    Attributes:
        inputs: the distinct rows, in their order.
        lengths: tokens of each distinct row.
    """

    def __init__(self, inputs: Mapping[str, Tensor], rows: HostRows) -> None:
        first = np.asarray(rows.first_copy)
        distinct, places = np.unique(first, return_inverse=True)
        self.inputs, self.lengths = inputs, rows.lengths
        self._places: Tensor | None = None
        if len(distinct) < len(first):
            device = inputs["input_ids"].device
            index = to_device(torch.from_numpy(distinct), device)
            self.inputs = {name: tensor.index_select(0, index) for name, tensor in inputs.items()}
            self.lengths = np.asarray(rows.lengths)[distinct].tolist()
            self._places = to_device(torch.from_numpy(places), device)

    @property
    def padded_tokens(self) -> int:
        return self.inputs["attention_mask"].numel()

    def with_copies(self, vectors: Tensor) -> Tensor:
        """[all rows, D] from [distinct rows, D]."""
        return vectors if self._places is None else vectors.index_select(0, self._places)

    def summed(self, gradients: Tensor) -> Tensor:
        """The gradients of the distinct rows, from those of all rows. Same inputs, same bits."""
        if self._places is None:
            return gradients
        total = gradients.new_zeros(len(self.lengths), *gradients.shape[1:])
        if gradients.is_cuda:  # there index_add_ adds in the order of the moment, and index_put_ sorts first
            return total.index_put_((self._places,), gradients, accumulate=True)
        return total.index_add_(0, self._places, gradients)
