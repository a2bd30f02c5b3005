"""The order in which batches take the rows of several data sets."""

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from fastdense.data.source_mix import BatchSampling, Share, SourceSampler, apportion
from fastdense.errors import UserError

ROWS = (50, 23, 9)
BATCH = 8


def sampler(weights: tuple[float, ...] = ROWS, sampling: BatchSampling = "one_source", seed: int = 7) -> SourceSampler:
    names = ("large", "middle", "small")
    return SourceSampler([Share(*share) for share in zip(names, ROWS, weights, strict=True)], BATCH, seed, sampling)


def blocks(order: SourceSampler, epoch: int = 0) -> list[list[int]]:
    order.set_epoch(epoch)
    return list(BatchSampler(order, BATCH, drop_last=False))


def source(index: int) -> int:
    return 0 if index < 50 else 1 if index < 73 else 2


def test_batches_of_one_source_come_by_weight() -> None:
    taken = blocks(sampler((2, 2, 1)))
    assert all(len({source(index) for index in block}) == 1 for block in taken)
    assert Counter(source(block[0]) for block in taken) == {0: 4, 1: 4, 2: 2}


def test_mixed_batches_hold_every_source_by_weight() -> None:
    taken = blocks(sampler((5, 2, 1), "mixed"))
    assert len(taken) == sum(ROWS) // BATCH
    assert all(Counter(map(source, block)) == {0: 5, 1: 2, 2: 1} for block in taken)
    assert len({tuple(map(source, block)) for block in taken}) > 1  # shuffled: no process gets one source alone


@pytest.mark.parametrize("sampling", ["one_source", "mixed"])
def test_all_rows_come_equally_often_and_never_twice_in_a_batch(sampling: BatchSampling) -> None:
    order = sampler((1, 1, 1), sampling)
    taken = [block for epoch in range(60) for block in blocks(order, epoch)]
    assert all(len(set(block)) == BATCH for block in taken)
    seen = Counter(index for block in taken for index in block)
    assert len(seen) == sum(ROWS)
    for number in range(3):
        counts = [count for index, count in seen.items() if source(index) == number]
        assert min(counts) > 0.6 * max(counts)


@pytest.mark.parametrize(
    ("sampling", "weights", "in_a_pass"), [("one_source", (1, 4, 4), 48), ("mixed", (1, 3, 4), 50)]
)
def test_a_pass_repeats_nothing_however_many_epochs_it_takes(
    sampling: BatchSampling, weights: tuple[float, ...], in_a_pass: int
) -> None:
    order = sampler(weights, sampling)
    large = [i for epoch in range(7) for block in blocks(order, epoch) for i in block if source(i) == 0]
    assert len(large) > in_a_pass
    assert len(set(large[:in_a_pass])) == in_a_pass


def test_the_order_is_that_of_seed_and_epoch() -> None:
    first = sampler()
    once = [blocks(first, epoch) for epoch in (0, 1, 2)]
    assert blocks(sampler(), 2) == once[2]  # without the epochs before
    assert blocks(first, 0) == once[0]
    assert once[0] != once[1]
    assert blocks(sampler(seed=8)) != once[0]


def test_processes_take_disjoint_rows_of_one_source_at_a_time() -> None:
    batches = BatchSampler(sampler(), BATCH // 2, drop_last=True)
    ranks = [list(BatchSamplerShard(batches, 2, rank, even_batches=True)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(batches) // 2
    for one, other in zip(*ranks, strict=True):
        assert set(one).isdisjoint(other)
        assert len({source(index) for index in one + other}) == 1


def test_a_source_that_cannot_fill_its_part_is_named() -> None:
    with pytest.raises(UserError, match="small has 9 rows, fewer than the 20 that it gives"):
        SourceSampler([Share("large", 50, 1), Share("small", 9, 1)], 20, 0, "one_source")
    with pytest.raises(UserError, match=r"small with weight 0\.1 gets no row of a batch, of 8"):
        sampler((5, 5, 0.1), "mixed")
    with pytest.raises(UserError, match="large with weight 1 gets no batch of an epoch, of 10"):
        sampler((1, 30, 30))


def test_apportion() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [2, 1, 0.5]) == [4, 2, 1]
    assert sum(apportion(1000, [0.1, 3, 7, 11])) == 1000
