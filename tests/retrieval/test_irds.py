"""The commands over ids of ir_datasets, whose registry gets data sets of our own: nothing is downloaded."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastdense.encode
import fastdense.evaluate
import fastdense.mine
import fastdense.search
from fastdense.data.sources import find_source
from fastdense.errors import UserError
from fastdense.retrieval.irds import irds_texts
from fastdense.retrieval.qrels import read_qrels
from fastdense.retrieval.representations import read_representations
from fastdense.retrieval.texts import Text, read_texts

ir_datasets = pytest.importorskip("ir_datasets", reason="not installed: pip install 'fastdense[ir-datasets]'")
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQrel, GenericQuery  # noqa: E402


class TitledDoc(NamedTuple):
    """As those of BEIR."""

    doc_id: str
    text: str
    title: str

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


class PageDoc(NamedTuple):
    """As those of MS MARCO's documents: its text is made of other fields."""

    doc_id: str
    title: str
    body: str

    def default_text(self) -> str:
        return f"{self.title} {self.body}"


class TextlessDoc(NamedTuple):
    doc_id: str


class Nugget(NamedTuple):
    query_id: str
    nugget_id: str


class Docs(BaseDocs):
    def __init__(self, docs: list[Any]) -> None:
        self.docs = docs

    def docs_iter(self) -> Iterator[Any]:
        return iter(self.docs)


class Queries(BaseQueries):
    def __init__(self, queries: list[Any]) -> None:
        self.queries = queries

    def queries_iter(self) -> Iterator[Any]:
        return iter(self.queries)


class Qrels(BaseQrels):
    def __init__(self, qrels: list[Any]) -> None:
        self.qrels = qrels

    def qrels_iter(self) -> Iterator[Any]:
        return iter(self.qrels)


class NoNetwork(BaseDocs):
    def docs_iter(self) -> Iterator[Any]:
        raise ConnectionError("the server does not answer")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``register(id, parts...)``: an id that ir_datasets knows until the test ends."""
    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(ir_datasets.registry._registered))

    def add(name: str, *parts: Any) -> str:
        ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))
        return f"irds:{name}"

    return add


@pytest.fixture
def collection(register: Callable[..., str], eval_dir: Path) -> str:
    """The held-out set of ``eval_dir`` under an id."""
    names = ("corpus", "queries")
    rows = {name: map(json.loads, (eval_dir / f"{name}.jsonl").read_text().splitlines()) for name in names}
    lines = [line.split() for line in (eval_dir / "qrels.txt").read_text().splitlines()]
    return register(
        "tiny/held-out",
        Docs([TitledDoc(row["docid"], row["text"], row["title"]) for row in rows["corpus"]]),
        Queries([GenericQuery(row["query_id"], row["query"]) for row in rows["queries"]]),
        Qrels([GenericQrel(query, passage, int(relevance)) for query, _, passage, relevance in lines]),
    )


def test_an_id_is_encoded_and_measured_as_its_files_are(
    collection: str, eval_dir: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    def measures(name: str, corpus: list[str], queries: list[str], qrels: str) -> tuple[dict[str, float], Any]:
        folder = tmp_path / name
        common = ["--model_name_or_path", str(tiny_bert_dir), "--pooling", "mean", "--passage_field_separator", ": "]
        passage, query, ranking = (str(folder / file) for file in ("p.npy", "q.npy", "run.txt"))
        fastdense.encode.main([*common, *corpus, "--encoded_save_path", passage])
        fastdense.encode.main([*common, *queries, "--encode_is_qry", "--encoded_save_path", query])
        vectors = ["--query_reps", query, "--passage_reps", passage]
        fastdense.search.main([*vectors, "--save_ranking_to", ranking, "--save_text"])
        fastdense.evaluate.main(["--qrels", qrels, "--run", ranking, "--output", str(folder / "values.json")])
        return json.loads((folder / "values.json").read_text()), read_representations(passage)

    by_id = ["--dataset_name", collection]
    values, vectors = measures("id", by_id, by_id, collection)
    files = [["--encode_in_path", str(eval_dir / f"{name}.jsonl")] for name in ("corpus", "queries")]
    expected, expected_vectors = measures("files", *files, str(eval_dir / "qrels.txt"))
    assert values == expected
    assert 0 < values["RR@10"] < 1
    assert vectors.ids == expected_vectors.ids
    np.testing.assert_array_equal(vectors.vectors, expected_vectors.vectors)


def test_hard_negatives_are_those_of_its_files(
    collection: str, eval_dir: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    vectors = []
    for side, flags in (("query", ["--encode_is_qry"]), ("passage", [])):
        vectors += [f"--{side}_reps", str(tmp_path / f"{side}.npy")]
        fixed = ["--model_name_or_path", str(tiny_bert_dir), "--dataset_name", collection]
        fastdense.encode.main([*fixed, *flags, "--encoded_save_path", vectors[-1]])

    def mined(name: str, corpus: str, queries: str, qrels: str) -> str:
        named = ["--corpus", corpus, "--queries", queries, "--qrels", qrels, "--num_negatives", "5"]
        fastdense.mine.main([*vectors, *named, "--save_rows_to", str(tmp_path / f"{name}.jsonl")])
        return (tmp_path / f"{name}.jsonl").read_text()

    files = [str(eval_dir / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels.txt")]
    assert mined("id", collection, collection, collection) == mined("files", *files)


def test_a_text_is_what_ir_datasets_calls_so_with_the_title_apart(register: Callable[..., str]) -> None:
    docs = [TitledDoc("1", "text", "title"), TitledDoc("2", "text", ""), PageDoc("3", "t", "b"), GenericDoc("4", "x")]
    name = register("tiny/kinds", Docs(docs), Queries([GenericQuery("q", "y")]))
    expected = [Text("1", "text", "title"), Text("2", "text", ""), Text("3", "t b"), Text("4", "x")]
    assert read_texts(irds_texts(name, is_query=False), is_query=False) == expected
    assert read_texts(irds_texts(name, is_query=True), is_query=True) == [Text("q", "y")]


def test_mistakes_end_in_one_sentence(register: Callable[..., str]) -> None:
    judged = [GenericQrel("q", "d", 1), GenericQrel("q", "d", 0)]
    names = {
        "texts": register("tiny/texts", Docs([TextlessDoc("1")])),
        "twice": register("tiny/twice", Docs([GenericDoc("1", "x"), GenericDoc("1", "y")]), Qrels(judged)),
        "nuggets": register("tiny/nuggets", Qrels([Nugget("q", "n")])),
        "offline": register("tiny/offline", NoNetwork()),
    }
    texts: Callable[[str], Any] = lambda name: read_texts(irds_texts(name, is_query=False), is_query=False)  # noqa: E731
    for read, name, sentence in (
        (texts, "irds:tiny/text", "ir_datasets knows no such id: did you mean irds:tiny/texts?"),
        (texts, names["nuggets"], "irds:tiny/nuggets has no docs (only qrels): name another id"),
        (texts, names["texts"], "irds:tiny/texts, document 1: ir_datasets has no text for a TextlessDoc"),
        (texts, names["twice"], "irds:tiny/twice, document 2: the id '1' is that of irds:tiny/twice, document 1"),
        (texts, names["offline"], "ir_datasets cannot read its docs: the server does not answer"),
        (read_qrels, names["texts"], "irds:tiny/texts has no qrels (only docs)"),
        (read_qrels, names["nuggets"], "its judgements are no relevances of passages"),
        (read_qrels, names["twice"], "irds:tiny/twice: 'd' has another relevance for 'q' above"),
        (lambda name: find_source(None, name), names["texts"], "is a test collection, which has no training rows"),
    ):
        with pytest.raises(UserError) as error:
            read(name)
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)
