"""Who finds the candidates changes nothing: faiss on a CPU, or PyTorch, tile by tile, on a GPU."""

import numpy as np
import pytest
import torch

from fastdense.retrieval import nearest
from fastdense.retrieval.nearest import Nearest, search_device, tiled_candidates
from fastdense.retrieval.representations import Representations
from fastdense.retrieval.search import search_shards


def random_vectors(n: int, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.fixture
def queries() -> Representations:
    return Representations([f"q{i}" for i in range(37)], random_vectors(37, 0))


@pytest.fixture
def passages() -> Representations:
    """700 passages, a third of them copies of others, so that scores tie."""
    vectors = random_vectors(700, 1)
    vectors[400:640] = vectors[np.arange(240) // 2]
    return Representations([f"d{i}" for i in range(700)], vectors)


def search(queries, passages, device="cpu"):
    shards = [Representations(passages.ids[i::2], passages.vectors[i::2]) for i in range(2)]
    run = search_shards(queries, shards, 12, 8, device=torch.device(device))
    return {query: (found.passage_ids, found.scores.tolist()) for query, found in run.items()}


@pytest.mark.parametrize("tile", [1, 150, 699, 700, 2000])
@pytest.mark.parametrize("width", [1, 140, 700])
def test_tiles_find_the_largest_scores(monkeypatch, tile, width):
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 5 * tile)  # of five queries
    queries, passages = random_vectors(5, 0), random_vectors(700, 1)
    found = tiled_candidates(torch.tensor(queries), torch.tensor(passages), width)
    expected = np.argsort(-(queries @ passages.T), axis=1)[:, :width]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))


def test_a_search_by_tiles_equals_the_one_by_faiss(queries, passages, monkeypatch):
    expected = search(queries, passages)
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 8 * 160)

    def by_tiles(self: Nearest, rows: np.ndarray, width: int) -> np.ndarray:
        return tiled_candidates(torch.tensor(rows), torch.tensor(self._on_cpu), width)

    monkeypatch.setattr(Nearest, "candidates", by_tiles)
    assert search(queries, passages) == expected


def test_the_command_searches_on_the_gpu_there_is():
    assert search_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(queries, passages):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    assert search(queries, passages, "cuda") == search(queries, passages)
