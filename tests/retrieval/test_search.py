"""Exact search: against float64 brute force, batched, sharded, with ties."""

import sys
import tracemalloc

import numpy as np
import pytest

from fastdense.errors import UserError
from fastdense.retrieval import representations, search
from fastdense.retrieval.rankings import merge_runs
from fastdense.retrieval.representations import Representations, read_representations, write_representations
from fastdense.retrieval.search import SPARE_CANDIDATES, exact_search, search_shards


def random_vectors(n: int, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def shard(passages: Representations, n: int) -> list[Representations]:
    return [Representations(passages.ids[i::n], passages.vectors[i::n], f"shard {i}") for i in range(n)]


def as_lists(run):
    return {query: (found.passage_ids, found.scores.tolist()) for query, found in run.items()}


@pytest.fixture
def queries() -> Representations:
    return Representations([f"q{i}" for i in range(37)], random_vectors(37, 0), "queries.pkl")


@pytest.fixture
def passages() -> Representations:
    """700 passages, a third of them copies of others, so that scores tie."""
    vectors = random_vectors(700, 1)
    vectors[400:640] = vectors[np.arange(240) // 2]
    return Representations([f"d{i}" for i in range(700)], vectors, "passages.pkl")


@pytest.mark.parametrize("depth", [1, 10, 150, 700, 1000])
def test_equals_brute_force_in_float64(queries, passages, depth):
    scores, indices = exact_search(queries.vectors, passages.vectors, depth)
    exact = (queries.vectors.astype(np.float64) @ passages.vectors.astype(np.float64).T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(700), exact.shape), -exact))[:, :depth]
    assert scores.dtype == np.float32
    assert indices.dtype == np.int64
    assert scores.shape == indices.shape == (37, min(depth, 700))
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, order, axis=1))


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 1000, -1, 0])
def test_the_batch_size_changes_nothing(queries, passages, batch_size):
    expected = exact_search(queries.vectors, passages.vectors, 20, 128)
    found = exact_search(queries.vectors, passages.vectors, 20, batch_size)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("depth", [1, 3, 10, 150, 1000])
@pytest.mark.parametrize("n_shards", [2, 3, 7])
def test_shards_and_merging_equal_one_search(queries, passages, n_shards, depth):
    whole = search_shards(queries, [passages], depth, 8)
    shards = shard(passages, n_shards)
    assert as_lists(search_shards(queries, iter(shards), depth, 8)) == as_lists(whole)
    separate = [(piece.source, search_shards(queries, [piece], depth, 8)) for piece in shards]
    assert as_lists(merge_runs(separate, depth)) == as_lists(whole)


@pytest.mark.parametrize("rows", [1, 13, 350, 699])
def test_blocks_of_a_shard_change_nothing(queries, passages, monkeypatch, rows):
    whole = search_shards(queries, [passages], 20)
    monkeypatch.setattr(search, "BLOCK_BYTES", rows * 4 * 16)
    done = []
    assert as_lists(search_shards(queries, shard(passages, 2), 20, 8, done.append)) == as_lists(whole)
    assert sum(done) == 2 * len(queries.ids)
    assert min(done) >= 0


def test_all_queries_look_at_a_block_before_any_looks_at_the_next(queries, passages, monkeypatch):
    vectors, seen = random_vectors(700, 1), []
    original = search._search_batch

    def watched(batch, block, *rest):
        seen.append((len(batch), int((vectors == block[0]).all(axis=1).argmax())))
        return original(batch, block, *rest)

    monkeypatch.setattr(search, "BLOCK_BYTES", 300 * 4 * 16)
    monkeypatch.setattr(search, "_search_batch", watched)
    search_shards(queries, [Representations(passages.ids, vectors)], 20, 20)
    assert seen == [(20, 0), (17, 0), (20, 300), (17, 300), (20, 600), (17, 600)]


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8"])
@pytest.mark.parametrize("name", ["shard.npy", "shard.safetensors"])
def test_a_mapped_shard_is_never_in_memory_as_a_whole(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setattr(search, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(representations, "CHECKED_BYTES", 2**20)
    n, width = 2**14, 512
    queries = Representations(["q0", "q1"], random_vectors(2, 0, width))
    vectors = random_vectors(n, 1, width).astype(np.float16)  # exact in all of them
    write_representations(tmp_path / name, Representations([str(i) for i in range(n)], vectors.astype(dtype)))
    expected = search_shards(queries, [Representations([str(i) for i in range(n)], vectors.astype(np.float32))], 10)
    tracemalloc.start()
    try:
        passages = read_representations(tmp_path / name)
        found = search_shards(queries, [passages], 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passages.vectors.dtype == dtype
    assert 4 * passages.vectors.size == 2**25
    assert peak < 2**23
    assert as_lists(found) == as_lists(expected)


@pytest.mark.parametrize("step", [1, -1])
def test_more_ties_than_spare_candidates_do_not_depend_on_rows_or_shards(queries, monkeypatch, step):
    monkeypatch.setattr(search, "EXHAUSTIVE_ROWS", 100)
    n = 3 * SPARE_CANDIDATES
    vectors = np.repeat(random_vectors(1, 2), n, axis=0)
    vectors[::100] *= 2
    ids = [f"d{i:03}" for i in range(n)][::step]
    passages = Representations(ids, vectors)
    whole = search_shards(queries, [passages], 12)
    assert as_lists(search_shards(queries, shard(passages, 2), 12)) == as_lists(whole)
    for query, row in zip(queries.ids, queries.vectors, strict=True):
        first = sorted(ids[::100], reverse=True) if row @ vectors[1] > 0 else []
        others = sorted(set(ids) - set(ids[::100]), reverse=True)
        assert whole[query].passage_ids == [*first, *others][:12]


def test_equal_scores_are_ordered_by_id_descending():
    queries = Representations(["q"], np.ones((1, 2), np.float32))
    passages = Representations(["b", "c", "a", "z"], np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32))
    assert search_shards(queries, [passages], 4)["q"].passage_ids == ["c", "b", "a", "z"]
    assert search_shards(queries, [passages], 2)["q"].passage_ids == ["c", "b"]
    assert exact_search(queries.vectors, passages.vectors, 2)[1].tolist() == [[0, 1]]


def test_depth_below_one(queries, passages):
    with pytest.raises(UserError, match="--depth must be at least 1, not 0"):
        exact_search(queries.vectors, passages.vectors, 0)


def test_other_dimension_names_files_and_sizes(queries):
    other = Representations(["d"], random_vectors(1, 0, 8), "corpus.pkl")
    with pytest.raises(UserError, match=r"queries\.pkl have 16 dimensions, the passages of corpus\.pkl 8"):
        search_shards(queries, [other], 1)
    with pytest.raises(UserError, match="16 dimensions, passages 8"):
        exact_search(queries.vectors, other.vectors, 1)


def test_nothing_to_search(queries):
    with pytest.raises(UserError, match="37 queries and 0 passages"):
        exact_search(queries.vectors, np.empty((0, 16), np.float32), 1)


def test_a_passage_in_two_shards(queries, passages):
    again = Representations(["d3"], random_vectors(1, 0), "again.pkl")
    with pytest.raises(UserError, match=r"again\.pkl: passage 'd3' is in another file"):
        search_shards(queries, [passages, again], 1)


def test_without_faiss_the_sentence_names_the_extra(queries, passages, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'fastdense\[retrieval\]'"):
        exact_search(queries.vectors, passages.vectors, 1)
