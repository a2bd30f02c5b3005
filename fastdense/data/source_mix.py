"""Several data sets in one run: their rows end to end, and the order in which batches take them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from fastdense.data.training_set import Example, TrainingSet
from fastdense.errors import UserError

BatchSampling = Literal["one_source", "mixed"]


@dataclass(frozen=True)
class Share:
    """How much of a run a data set gets."""

    name: str
    """How messages call the data set."""
    rows: int
    weight: float
    """Relative to the other sets' weights."""


class SourceMix(Dataset[Example]):
    """The examples of several :class:`TrainingSet`, one set behind the other; the rest says how batches take them."""

    def __init__(
        self, sets: Sequence[TrainingSet], shares: Sequence[Share], batch_sampling: BatchSampling, seed: int
    ) -> None:
        self.sets = list(sets)
        self.shares = list(shares)
        self.batch_sampling: BatchSampling = batch_sampling
        self.seed = seed
        self._ends = list(accumulate(map(len, self.sets)))

    @property
    def n_passages(self) -> int:
        """Most passages of an example."""
        return self.sets[0].n_passages

    def set_epoch(self, epoch: int) -> None:
        """Choose the passages of ``epoch`` (from 0) from now on, in worker processes as well."""
        for each in self.sets:
            each.set_epoch(epoch)

    def sampler(self, batch_rows: int) -> "SourceSampler":
        """The order in which batches of ``batch_rows``, those of all processes together, take the rows."""
        return SourceSampler(self.shares, batch_rows, self.seed, self.batch_sampling)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        number = bisect_right(self._ends, index)
        return self.sets[number][index - (self._ends[number - 1] if number else 0)]


class SourceSampler(Sampler[int]):
    """Indices into a :class:`SourceMix`, in blocks of ``batch_rows``: a step's batches on all processes.

    - ``"one_source"``: the rows of a block are of one set; sets get blocks in proportion to their weights, in an order
      that is shuffled anew in every epoch.
    - ``"mixed"``: every block holds rows of all sets in proportion to their weights, shuffled.

    An epoch has as many whole blocks as the sets together have. A set is walked in shuffled passes: no row comes again
    before the pass is over, in however many epochs that is, and no block holds a row twice; the rows of a pass that
    fill no block are left out of that pass. The order is a function of ``seed`` and the epoch alone.

    Raises:
        UserError: a set has too few rows for what it gives to one block, or too small a weight to give anything.
    """

    def __init__(self, shares: Sequence[Share], batch_rows: int, seed: int, batch_sampling: BatchSampling) -> None:
        self._shares = shares
        self._seed = seed
        self._epoch = 0
        self._batch_rows = batch_rows
        self._mixed = batch_sampling == "mixed"
        self._blocks = sum(share.rows for share in shares) // batch_rows
        self._starts = [0, *accumulate(share.rows for share in shares)]
        weights = [share.weight for share in shares]
        self._quotas = apportion(batch_rows if self._mixed else self._blocks, weights)
        self._passes: dict[int, tuple[int, NDArray[np.int64]]] = {}
        for share, quota in zip(shares, self._quotas, strict=True):
            self._check(share, quota)

    def _check(self, share: Share, quota: int) -> None:
        what = "row of a batch" if self._mixed else "batch of an epoch"
        total = self._batch_rows if self._mixed else self._blocks
        if not quota:
            raise UserError(
                f"{share.name} with weight {share.weight:g} gets no {what}, of {total}: raise its --train_weights, "
                "choose another batch size, or leave it out"
            )
        needed = quota if self._mixed else self._batch_rows
        if share.rows < needed:
            raise UserError(
                f"{share.name} has {share.rows} rows, fewer than the {needed} that it gives to one batch of "
                f"{self._batch_rows}: lower --per_device_train_batch_size"
                + (" or its --train_weights" if self._mixed else ", or pass --batch_sampling mixed")
            )

    def set_epoch(self, epoch: int) -> None:
        """Give the order of ``epoch`` (from 0) from the next iteration on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._blocks * self._batch_rows

    def __iter__(self) -> Iterator[int]:
        shuffle = np.random.default_rng([self._seed, self._epoch])
        for block in self._mixed_blocks() if self._mixed else self._blocks_of_one(shuffle):
            yield from shuffle.permutation(block).tolist()

    def _mixed_blocks(self) -> Iterator[NDArray[np.int64]]:
        for number in range(self._epoch * self._blocks, (self._epoch + 1) * self._blocks):
            yield np.concatenate([self._part(source, number, rows) for source, rows in enumerate(self._quotas)])

    def _blocks_of_one(self, shuffle: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        given = [self._epoch * quota for quota in self._quotas]
        for source in shuffle.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas)).tolist():
            yield self._part(source, given[source], self._batch_rows)
            given[source] += 1

    def _part(self, source: int, number: int, rows: int) -> NDArray[np.int64]:
        """The ``number``-th part, counted over all epochs, of ``rows`` rows of a set."""
        turn, place = divmod(number, self._shares[source].rows // rows)
        if self._passes.get(source, (-1,))[0] != turn:
            order = np.random.default_rng([self._seed, source, turn]).permutation(self._shares[source].rows)
            self._passes[source] = (turn, order)
        return self._starts[source] + self._passes[source][1][place * rows : (place + 1) * rows]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` divided in proportion to ``weights``, in whole numbers by the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts
