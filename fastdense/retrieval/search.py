"""Exact search by inner product, in one piece or shard by shard."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.retrieval.nearest import Floats, Indices, Nearest
from fastdense.retrieval.rankings import Run, make_run
from fastdense.retrieval.representations import Representations

# Candidates are found by float32 scores, whose last bits differ from shard to shard and from batch to batch: so many
# more than wanted are asked for, since those near the end of the list may change places when computed again.
SPARE_CANDIDATES = 128
EXHAUSTIVE_ROWS = 65536  # passages at a time when one query is scored against all
BLOCK_BYTES = 2**30  # of passages that all queries are scored against before the next are read

_CPU = torch.device("cpu")


def exact_search(
    query_reps: Floats,
    passage_reps: Floats,
    depth: int,
    batch_size: int = 128,
    *,
    passage_ids: Sequence[str] | None = None,
) -> tuple[Floats, Indices]:
    """The ``depth`` passages with the largest inner products for every query.

    The scores are inner products summed in float64 and rounded to float32, so they do not depend on how queries are
    batched or passages are sharded.

    Args:
        query_reps: float32 [Q, D].
        passage_reps: float32 [M, D].
        depth: passages for a query, at least 1; all M if there are fewer.
        batch_size: queries at a time; 0 or less takes all at once.
        passage_ids: the M ids. Equal scores are ordered by id, descending (trec_eval's order), without ids by row.

    Returns:
        scores float32 and row numbers int64, both [Q, min(depth, M)], best first.

    Raises:
        UserError: depth below 1, different dimensions, no passages, or faiss is not installed.
    """
    query_reps = np.ascontiguousarray(query_reps, dtype=np.float32)
    passage_reps = np.ascontiguousarray(passage_reps, dtype=np.float32)
    _check_problem(query_reps, passage_reps, depth)
    found = []
    nearest = Nearest(passage_reps, _CPU)
    for batch in _batches(len(query_reps), batch_size):
        found.append(_search_batch(query_reps[batch], passage_reps, nearest, depth, passage_ids))
    scores, indices = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(indices)


def search_shards(
    queries: Representations,
    shards: Iterable[Representations],
    depth: int,
    batch_size: int = 128,
    on_batch: Callable[[int], object] | None = None,
    device: torch.device = _CPU,
) -> Run:
    """Search shards of a corpus one after the other and merge: equal to searching them as one.

    In memory, beside the queries, are the ids of all passages, ``depth`` scores and places for every query, and one
    shard if ``shards`` is lazy. All queries look at :data:`BLOCK_BYTES` of it before any looks at the next, so a
    memory-mapped shard may be larger than the memory and is read from the disk once.

    Args:
        on_batch: called with the number of queries done after each batch; they add up to one round for every shard.
        device: which finds the candidates, a block of passages in its memory; their scores and what is found do not
            depend on it.

    Raises:
        UserError: see :func:`exact_search`; or an id occurs in two shards.
    """
    best = _BestSoFar(queries.rows(slice(None)), depth, device)
    seen: set[str] = set()
    for shard in shards:
        _check_shard(queries, shard, seen)
        _check_problem(queries.vectors, shard.vectors, depth)
        blocks = shard.blocks(BLOCK_BYTES)
        for number, block in enumerate(blocks):
            before = len(queries.ids) * number // len(blocks)
            for done in best.add(shard.rows(block), shard.ids[block], batch_size):
                after = (len(queries.ids) * number + done) // len(blocks)
                if on_batch is not None:
                    on_batch(after - before)
                before = after
        del shard  # before the next is read
    return make_run(queries.ids, best.ids, best.scores, best.indices)


class _BestSoFar:
    """The best passages of all queries [Q, D] among the blocks of passages that have been added."""

    def __init__(self, queries: Floats, depth: int, device: torch.device) -> None:
        self.queries = queries
        self.depth = depth
        self.device = device
        self.ids: list[str] = []
        self.scores = np.empty((len(queries), 0), np.float32)
        self.indices = np.empty((len(queries), 0), np.int64)
        """Both [Q, min(depth, passages)], best first; numbers of passages in ``ids``."""

    def add(self, passages: Floats, ids: Sequence[str], batch_size: int) -> Iterator[int]:
        """Score every query against ``passages`` [M, D]; yields how many queries are done."""
        first, before = len(self.ids), self.scores.shape[1]
        self.ids += ids
        self._widen(min(self.depth, len(self.ids)))
        nearest = Nearest(passages, self.device)
        for batch in _batches(len(self.queries), batch_size):
            scores, indices = _search_batch(self.queries[batch], passages, nearest, self.depth, ids)
            scores = np.hstack([self.scores[batch, :before], scores])
            indices = np.hstack([self.indices[batch, :before], indices + first])
            self.scores[batch], self.indices[batch] = _best(scores, indices, self.depth, self.ids)
            yield batch.stop

    def _widen(self, width: int) -> None:
        missing = ((0, 0), (0, width - self.scores.shape[1]))
        if missing[1][1]:
            self.scores, self.indices = np.pad(self.scores, missing), np.pad(self.indices, missing)


def _check_shard(queries: Representations, shard: Representations, seen: set[str]) -> None:
    query_width, passage_width = queries.vectors.shape[1], shard.vectors.shape[1]
    if query_width != passage_width:
        raise UserError(
            f"the queries of {queries.source} have {query_width} dimensions, the passages of {shard.source} "
            f"{passage_width}: encode both with one model"
        )
    shard.check_new(seen)


def _check_problem(query_reps: NDArray[np.floating], passage_reps: NDArray[np.floating], depth: int) -> None:
    if depth < 1:
        raise UserError(f"--depth must be at least 1, not {depth}")
    if not len(query_reps) or not len(passage_reps):
        raise UserError(f"nothing to search: there are {len(query_reps)} queries and {len(passage_reps)} passages")
    if query_reps.shape[1] != passage_reps.shape[1]:
        raise UserError(f"queries have {query_reps.shape[1]} dimensions, passages {passage_reps.shape[1]}")


def _batches(count: int, batch_size: int) -> list[slice]:
    return _slices(count, batch_size if batch_size > 0 else count)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _search_batch(
    query: Floats, passage: Floats, nearest: Nearest, depth: int, passage_ids: Sequence[str] | None
) -> tuple[Floats, Indices]:
    depth = min(depth, len(passage))
    width = min(depth + SPARE_CANDIDATES, len(passage))
    candidates = nearest.candidates(query, width)
    scores = np.stack([inner_products(row, passage[near]) for row, near in zip(query, candidates, strict=True)])
    best_scores, best = _best(scores, candidates, depth, passage_ids)
    if width < len(passage):
        # All spare candidates are tied with the last place: who gets it must not be left to whoever chose them.
        for row in np.flatnonzero(scores.min(axis=1) == best_scores[:, -1]):
            best_scores[row], best[row] = _search_all(query[row], passage, best_scores[row, -1], depth, passage_ids)
    return best_scores, best


def inner_products(query: Floats, passage: Floats) -> Floats:
    """The scores of one query [D] with passages [M, D]: sums in float64, rounded to float32."""
    return (passage.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)


def _search_all(
    query: Floats, passage: Floats, floor: np.float32, depth: int, passage_ids: Sequence[str] | None
) -> tuple[Floats, Indices]:
    """One query [D] against every passage; only those that reach the score ``floor`` are sorted."""
    blocks = [passage[start : start + EXHAUSTIVE_ROWS] for start in range(0, len(passage), EXHAUSTIVE_ROWS)]
    scores = np.concatenate([inner_products(query, block) for block in blocks])
    near = np.flatnonzero(scores >= floor)
    best_scores, best = _best(scores[None, near], near[None], depth, passage_ids)
    return best_scores[0], best[0]


def _best(scores: Floats, indices: Indices, depth: int, ids: Sequence[str] | None) -> tuple[Floats, Indices]:
    """The first ``depth`` of every row of ``scores`` and ``indices`` [Q, C] once they are in order."""
    order = np.lexsort((indices, -scores))
    scores, indices = np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
    if ids is not None:
        for row in np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1)):
            # Within equal scores only: the first sort key is the score again.
            by_id = sorted(range(scores.shape[1]), key=lambda c: ids[indices[row, c]], reverse=True)
            tied = np.array(by_id)[np.argsort(-scores[row, by_id], kind="stable")]
            indices[row] = indices[row, tied]
    return scores[:, :depth], indices[:, :depth]
