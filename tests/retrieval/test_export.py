"""Exports: what other programs find in them is what was encoded."""

from pathlib import Path

import datasets
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastdense.export
from fastdense.errors import UserError
from fastdense.retrieval import export
from fastdense.retrieval.representations import Representations, write_representations
from fastdense.retrieval.search import exact_search

N, WIDTH = 300, 8


@pytest.fixture
def vectors(tmp_path) -> np.ndarray:
    """Three shards of vectors [300, 8] in tmp_path/emb, of ids d0 to d299."""
    vectors = np.random.default_rng(0).standard_normal((N, WIDTH)).astype(np.float32)
    for name, rows in (("0.npy", slice(0, 10)), ("1.pkl", slice(10, 200)), ("2.npy", slice(200, N))):
        ids = [f"d{i}" for i in range(N)[rows]]
        write_representations(tmp_path / "emb" / name, Representations(ids, vectors[rows]))
    return vectors


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(export, "BLOCK_BYTES", 64 * 4 * WIDTH)


def run(directory: Path, name: str, *flags: object) -> Path:
    path = directory / name
    arguments = ["--passage_reps", directory / "emb/*", "--export_to", path, *flags]
    fastdense.export.main([str(argument) for argument in arguments])
    return path


def found(index: faiss.Index, ids: list[str], queries: np.ndarray, depth: int) -> list[list[str]]:
    return [[ids[i] for i in row] for row in index.search(queries, depth)[1]]


@pytest.mark.parametrize(
    "factory", [None, "Flat", "IVF4,Flat", "HNSW16", "IVF4,PQ4x4", "OPQ4,PQ4x4", "PCA4,Flat", "SQfp16"]
)
def test_the_index_finds_what_the_search_finds(tmp_path, vectors, factory, capsys):
    flags = [] if factory is None else ["--faiss_factory", factory]
    path = run(tmp_path, "corpus.faiss", *flags)
    index = faiss.read_index(str(path))
    ids = Path(f"{path}.ids.txt").read_text().splitlines()
    assert ids == [f"d{i}" for i in range(N)]
    assert (index.ntotal, index.d, index.metric_type) == (N, WIDTH, faiss.METRIC_INNER_PRODUCT)
    if factory is not None and factory.startswith("IVF"):
        index.nprobe = 4
    queries = np.random.default_rng(1).standard_normal((20, WIDTH)).astype(np.float32)
    exact = [[ids[i] for i in row] for row in exact_search(queries, vectors, 10)[1]]
    if factory in (None, "Flat", "IVF4,Flat"):
        assert found(index, ids, queries, 10) == exact
    else:
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found(index, ids, queries, 10), exact, strict=True)]
        assert np.mean(shares) > (0.9 if factory in ("HNSW16", "SQfp16") else 0.3)
    assert f"300 vectors are in {path}\n" in capsys.readouterr().out


def test_an_index_learns_from_vectors_of_all_shards(tmp_path, vectors, monkeypatch):
    seen = []
    original = export._sample

    def watched(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(export, "_sample", watched)
    run(tmp_path, "corpus.faiss", "--faiss_factory", "IVF2,Flat", "--faiss_train_rows", 100)
    run(tmp_path, "corpus.faiss", "--faiss_factory", "IVF2,Flat")
    rows = np.linspace(0, N - 1, 100).astype(int)
    np.testing.assert_array_equal(seen[0], vectors[rows])
    np.testing.assert_array_equal(seen[1], vectors)


def test_parquet(tmp_path, vectors):
    path = run(tmp_path, "corpus.parquet")
    table = pq.read_table(path)
    assert table.schema.equals(pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH))]))
    assert table["id"].to_pylist() == [f"d{i}" for i in range(N)]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), vectors)
    assert pq.ParquetFile(path).num_row_groups == 6  # written block by block
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=tmp_path / "cache")
    assert loaded[7] == {"id": "d7", "vector": vectors[7].tolist()}


def test_arrow(tmp_path, vectors):
    with pa.memory_map(str(run(tmp_path, "corpus.arrow"))) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table["id"].to_pylist() == [f"d{i}" for i in range(N)]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), vectors)


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("c.idx", [], "c.idx must end in .faiss, .parquet, .arrow"),
        ("c.parquet", ["--faiss_factory", "Flat"], "--faiss_factory is for an index in a .faiss file"),
        ("c.faiss", ["--faiss_factory", "Flatt"], "--faiss_factory Flatt: faiss refuses it (could not parse"),
        (
            "c.faiss",
            ["--faiss_factory", "IVF4000,Flat"],
            "--faiss_factory IVF4000,Flat: faiss refuses it (Number of training points (300)",
        ),
        ("c.faiss", ["--faiss_factory", "PQ3"], "--faiss_factory PQ3: faiss refuses it (The dimension of the vector"),
        ("c.faiss", ["--faiss_train_rows", "0"], "--faiss_train_rows must be at least 1, not 0"),
        ("c.faiss", ["--factory", "Flat"], "unknown flag --factory"),
        ("c.arrow", ["--passage_reps", "{files}/none"], "no file of representations matches"),
        ("c.arrow", ["--passage_reps", "{files}/wide/*"], "wide/b.npy: the vectors have 9 dimensions, those of"),
        ("c.faiss", ["--passage_reps", "{files}/twice/*"], "b.npy: passage 'd0' is in another file of --passage_reps"),
        ("emb", [], "must end in .faiss"),
        ("emb/0.npy/c.faiss", [], "cannot be written"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, vectors, name, flags, sentence):
    one = Representations(["d0"], vectors[:1])
    for directory in ("wide", "twice"):
        write_representations(tmp_path / directory / "a.npy", one)
    write_representations(tmp_path / "wide/b.npy", Representations(["d1"], np.ones((1, 9), np.float32)))
    write_representations(tmp_path / "twice/b.npy", one)
    with pytest.raises(UserError) as error:
        run(tmp_path, name, *(flag.format(files=tmp_path) for flag in flags))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("c.*"))
