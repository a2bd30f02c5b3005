"""Exact search by inner product, in one piece or shard by shard."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.retrieval.rankings import Run, make_run
from fastdense.retrieval.representations import Representations

# faiss is asked for this many passages more than wanted: its own scores differ in the last bits from shard to shard and
# from batch to batch, and those near the end of the list may change places when they are computed again.
SPARE_CANDIDATES = 128
EXHAUSTIVE_ROWS = 65536  # passages at a time when one query is scored against all

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def exact_search(
    query_reps: Floats,
    passage_reps: Floats,
    depth: int,
    batch_size: int = 128,
    *,
    passage_ids: Sequence[str] | None = None,
    on_batch: Callable[[int], object] | None = None,
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
        on_batch: called with the number of queries done after each batch.

    Returns:
        scores float32 and row numbers int64, both [Q, min(depth, M)], best first.

    Raises:
        UserError: depth below 1, different dimensions, no passages, or faiss is not installed.
    """
    query_reps = np.ascontiguousarray(query_reps, dtype=np.float32)
    passage_reps = np.ascontiguousarray(passage_reps, dtype=np.float32)
    _check_problem(query_reps, passage_reps, depth)
    found = []
    for batch in _batches(query_reps, batch_size):
        found.append(_search_batch(batch, passage_reps, depth, passage_ids))
        if on_batch is not None:
            on_batch(len(batch))
    scores, indices = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(indices)


def search_shards(
    queries: Representations,
    shards: Iterable[Representations],
    depth: int,
    batch_size: int = 128,
    on_batch: Callable[[int], object] | None = None,
) -> Run:
    """Search shards of a corpus one after the other and merge: equal to searching them as one.

    Only one shard's vectors are in memory at a time if ``shards`` is lazy; the ids of all are.

    Raises:
        UserError: see :func:`exact_search`; or an id occurs in two shards.
    """
    ids: list[str] = []
    scores = np.empty((len(queries.ids), 0), np.float32)
    indices = np.empty((len(queries.ids), 0), np.int64)
    seen: set[str] = set()
    for shard in shards:
        _check_shard(queries, shard, seen)
        seen.update(shard.ids)
        new_scores, new_indices = exact_search(
            queries.vectors, shard.vectors, depth, batch_size, passage_ids=shard.ids, on_batch=on_batch
        )
        new_indices += len(ids)
        ids += shard.ids
        scores, indices = _best(np.hstack([scores, new_scores]), np.hstack([indices, new_indices]), depth, ids)
        del shard  # before the next is read
    return make_run(queries.ids, ids, scores, indices)


def _check_shard(queries: Representations, shard: Representations, seen: set[str]) -> None:
    query_width, passage_width = queries.vectors.shape[1], shard.vectors.shape[1]
    if query_width != passage_width:
        raise UserError(
            f"the queries of {queries.source} have {query_width} dimensions, the passages of {shard.source} "
            f"{passage_width}: encode both with one model"
        )
    if twice := seen.intersection(shard.ids):
        raise UserError(f"{shard.source}: passage {min(twice)!r} is in another file of --passage_reps already")


def _check_problem(query_reps: Floats, passage_reps: Floats, depth: int) -> None:
    if depth < 1:
        raise UserError(f"--depth must be at least 1, not {depth}")
    if not len(query_reps) or not len(passage_reps):
        raise UserError(f"nothing to search: there are {len(query_reps)} queries and {len(passage_reps)} passages")
    if query_reps.shape[1] != passage_reps.shape[1]:
        raise UserError(f"queries have {query_reps.shape[1]} dimensions, passages {passage_reps.shape[1]}")


def _batches(query_reps: Floats, batch_size: int) -> Iterator[Floats]:
    size = batch_size if batch_size > 0 else len(query_reps)
    for start in range(0, len(query_reps), size):
        yield query_reps[start : start + size]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"search needs faiss ({error}): pip install 'fastdense[retrieval]'") from None
    return faiss


def _search_batch(
    query: Floats, passage: Floats, depth: int, passage_ids: Sequence[str] | None
) -> tuple[Floats, Indices]:
    faiss = _faiss()
    depth = min(depth, len(passage))
    width = min(depth + SPARE_CANDIDATES, len(passage))
    # What IndexFlatIP runs, on the array itself: an index would copy it.
    _, candidates = faiss.knn(query, passage, width, metric=faiss.METRIC_INNER_PRODUCT)
    scores = np.stack([_score(row, passage[near]) for row, near in zip(query, candidates, strict=True)])
    best_scores, best = _best(scores, candidates, depth, passage_ids)
    if width < len(passage):
        # All spare candidates are tied with the last place: who gets it must not be left to faiss's heap.
        for row in np.flatnonzero(scores.min(axis=1) == best_scores[:, -1]):
            best_scores[row], best[row] = _search_all(query[row], passage, best_scores[row, -1], depth, passage_ids)
    return best_scores, best


def _score(query: Floats, passage: Floats) -> Floats:
    return (passage.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)


def _search_all(
    query: Floats, passage: Floats, floor: np.float32, depth: int, passage_ids: Sequence[str] | None
) -> tuple[Floats, Indices]:
    """One query [D] against every passage; only those that reach the score ``floor`` are sorted."""
    blocks = [passage[start : start + EXHAUSTIVE_ROWS] for start in range(0, len(passage), EXHAUSTIVE_ROWS)]
    scores = np.concatenate([_score(query, block) for block in blocks])
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
