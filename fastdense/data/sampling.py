"""Which of a row's passages an epoch trains on.

Pure functions of (row, seed, epoch): training that is resumed, or read by several worker processes, samples the same.
The rule is Tevatron v1's, index for index, wherever v1's is determined by its seed.
"""

import random


def positive_index(count: int, *, row: int, seed: int, epoch: int, shuffle: bool = True) -> int:
    """Index (0 to ``count - 1``) of the positive that ``row`` trains on in ``epoch``.

    The positives take turns by epoch, starting at ``(row + seed) % count``; without ``shuffle`` always the first.
    """
    return (row + seed + epoch) % count if shuffle else 0


def negative_indices(count: int, wanted: int, *, row: int, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """Indices of the ``wanted`` negatives, out of ``count``, that ``row`` trains on in ``epoch``.

    Enough negatives: one shuffle per row, the same in every epoch, over which a window of ``wanted`` moves by epoch, so
    that all negatives are used equally often; without ``shuffle`` always the first ``wanted``. Too few: drawn with
    replacement, seeded by (seed, row, epoch), shuffle or not. None at all: an empty list, whatever is wanted.
    """
    if wanted == 0 or count == 0:
        return []
    if count < wanted:
        return random.Random(f"{seed}:{row}:{epoch}").choices(range(count), k=wanted)
    order = list(range(count))
    if not shuffle:
        return order[:wanted]
    random.Random(row + seed).shuffle(order)
    start = epoch * wanted % count
    return (order + order)[start : start + wanted]
