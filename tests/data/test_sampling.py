"""Tevatron v1's sampling rule: against literal values, against v1's steps written out, and its properties."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdense.data.sampling import negative_indices, positive_index

rows = st.integers(0, 10**6)
seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 1000)


def v1_passages(positives: list, negatives: list, n_passages: int, item: int, seed: int, epoch: int) -> list:
    """What v1 does to the lists of one row (enough negatives), step by step."""
    seed_i = item + seed
    chosen = [positives[(seed_i + epoch) % len(positives)]]
    k = n_passages - 1
    if k == 0:
        return chosen
    negatives = list(negatives)
    random.Random(seed_i).shuffle(negatives)
    offset = epoch * k % len(negatives)
    return chosen + (negatives * 2)[offset : offset + k]


@pytest.mark.parametrize(
    ("count", "row", "seed", "epoch", "expected"),
    [
        (1, 5, 42, 3, 0),
        (3, 0, 42, 0, 0),  # 42 % 3
        (3, 1, 42, 0, 1),  # 43 % 3
        (3, 1, 42, 1, 2),  # 44 % 3
        (3, 1, 42, 2, 0),  # 45 % 3
        (5, 7, 0, 39, 1),  # 46 % 5
        (7, 3, 40, 2, 3),  # 45 % 7
    ],
)
def test_positive_by_hand(count: int, row: int, seed: int, epoch: int, expected: int) -> None:
    assert positive_index(count, row=row, seed=seed, epoch=epoch) == expected
    assert positive_index(count, row=row, seed=seed, epoch=epoch, shuffle=False) == 0


@pytest.mark.parametrize(
    ("wanted", "epoch", "expected"),
    [
        # random.Random(42).shuffle turns 0 1 2 3 4 into 3 1 2 4 0; the window moves over 3 1 2 4 0 3 1 2 4 0.
        (2, 0, [3, 1]),
        (2, 1, [2, 4]),
        (2, 2, [0, 3]),  # from 4
        (2, 3, [1, 2]),  # from 6 % 5 = 1
        (5, 0, [3, 1, 2, 4, 0]),
        (5, 7, [3, 1, 2, 4, 0]),
        (3, 3, [0, 3, 1]),  # from 9 % 5 = 4
        (0, 3, []),
    ],
)
def test_negatives_by_hand(wanted: int, epoch: int, expected: list[int]) -> None:
    assert negative_indices(5, wanted, row=2, seed=40, epoch=epoch) == expected


@given(st.integers(1, 9), st.integers(1, 40), st.data(), rows, seeds, epochs)
def test_equals_v1(n_positives: int, n_negatives: int, data: st.DataObject, row: int, seed: int, epoch: int) -> None:
    n_passages = data.draw(st.integers(1, n_negatives + 1))
    positives = [f"p{i}" for i in range(n_positives)]
    negatives = [f"n{i}" for i in range(n_negatives)]
    choice = {"row": row, "seed": seed, "epoch": epoch}
    ours = [positives[positive_index(n_positives, **choice)]]
    ours += [negatives[i] for i in negative_indices(n_negatives, n_passages - 1, **choice)]
    assert ours == v1_passages(positives, negatives, n_passages, row, seed, epoch)


@given(st.integers(1, 9), rows, seeds, epochs)
def test_every_positive_has_its_turn(count: int, row: int, seed: int, first: int) -> None:
    turns = [positive_index(count, row=row, seed=seed, epoch=epoch) for epoch in range(first, first + count)]
    assert sorted(turns) == list(range(count))


@given(st.integers(1, 20), st.data(), rows, seeds)
def test_negatives_are_used_equally_often(count: int, data: st.DataObject, row: int, seed: int) -> None:
    wanted = data.draw(st.integers(1, count))
    epochs = [negative_indices(count, wanted, row=row, seed=seed, epoch=epoch) for epoch in range(count)]
    assert all(len(set(chosen)) == wanted for chosen in epochs)
    assert set(Counter(index for chosen in epochs for index in chosen).values()) == {wanted}


@given(st.integers(1, 20), st.data(), rows, seeds, epochs)
def test_without_shuffle_the_first(count: int, data: st.DataObject, row: int, seed: int, epoch: int) -> None:
    wanted = data.draw(st.integers(1, count))
    assert negative_indices(count, wanted, row=row, seed=seed, epoch=epoch, shuffle=False) == list(range(wanted))


@given(st.integers(1, 9), st.integers(1, 9), rows, seeds, epochs, st.booleans())
def test_too_few_are_drawn_again(count: int, more: int, row: int, seed: int, epoch: int, shuffle: bool) -> None:
    choice = {"row": row, "seed": seed, "epoch": epoch, "shuffle": shuffle}
    before = random.getstate()
    chosen = negative_indices(count, count + more, **choice)
    assert len(chosen) == count + more
    assert set(chosen) <= set(range(count))
    assert chosen == negative_indices(count, count + more, **choice), "a resumed run must draw the same"
    assert random.getstate() == before, "the global generator must stay out of it"


@pytest.mark.parametrize("changed", [{"row": 1}, {"seed": 1}, {"epoch": 1}])
def test_too_few_depend_on_row_seed_and_epoch(changed: dict[str, int]) -> None:
    choice = {"row": 0, "seed": 0, "epoch": 0}
    assert negative_indices(5, 30, **choice) != negative_indices(5, 30, **(choice | changed))


def test_too_few_do_not_mix_row_and_seed_up() -> None:
    assert negative_indices(5, 30, row=1, seed=0, epoch=0) != negative_indices(5, 30, row=0, seed=1, epoch=0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_negatives_at_all(shuffle: bool) -> None:
    assert negative_indices(0, 7, row=3, seed=42, epoch=1, shuffle=shuffle) == []
