"""``python -m fastdense.mine`` as a user calls it: rows, judgements and corpora to training rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdense.mine
import fastdense.retrieval.mining_rows
from fastdense.data.files import files_source
from fastdense.data.rows import Passage
from fastdense.data.training_rows import checked_rows
from fastdense.errors import UserError
from fastdense.retrieval.mining_rows import Corpus, JudgedQuery, known_positives, read_training_queries, text_key
from fastdense.retrieval.representations import Representations, write_representations


def mine(*arguments: object) -> None:
    fastdense.mine.main([str(argument) for argument in arguments])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path, tiny_rows, write_jsonl):
    """train.jsonl, corpus.jsonl, queries.jsonl, qrels.tsv, and random vectors: queries.npy, emb/0.npy, emb/1.npy."""
    corpus = [passage for row in tiny_rows for passage in row["positive_passages"] + row["negative_passages"]]
    write_jsonl(tmp_path / "train.jsonl", tiny_rows)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": row["query_id"], "text": row["query"]} for row in tiny_rows])
    judgements = [f"{row['query_id']}\t{p['docid']}\t1\n" for row in tiny_rows for p in row["positive_passages"]]
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgements))
    rng = np.random.default_rng(0)
    for name, ids in (
        ("queries", [row["query_id"] for row in tiny_rows]),
        ("emb/0", [passage["docid"] for passage in corpus[::2]]),
        ("emb/1", [passage["docid"] for passage in corpus[1::2]]),
    ):
        vectors = rng.standard_normal((len(ids), 8)).astype(np.float32)
        write_representations(tmp_path / f"{name}.npy", Representations(ids, vectors))
    return tmp_path


@pytest.fixture
def flags(files):
    vectors = ("--query_reps", files / "queries.npy", "--passage_reps", files / "emb/*")
    return (*vectors, "--corpus", files / "corpus.jsonl", "--save_rows_to", files / "out/mined.jsonl")


def test_training_rows_get_negatives(files, flags, tiny_rows, capsys):
    mine(*flags, "--train_dir", files / "train.jsonl", "--num_negatives", 5)
    texts = {passage["docid"]: passage for passage in read_lines(files / "corpus.jsonl")}
    rows = read_lines(files / "out/mined.jsonl")
    for row, before in zip(rows, tiny_rows, strict=True):
        assert row["query_id"] == before["query_id"]
        assert row["query"] == before["query"]
        assert row["positive_passages"] == before["positive_passages"]
        assert len(row["negative_passages"]) == 5
        assert all(negative == texts[negative["docid"]] for negative in row["negative_passages"])
        assert not {p["docid"] for p in row["negative_passages"]} & {p["docid"] for p in row["positive_passages"]}
    assert len(list(checked_rows(files_source([files / "out/mined.jsonl"])))) == 48  # what fastdense.train reads
    printed = capsys.readouterr().out
    assert "240 negatives for 48 queries\n" in printed
    assert printed.endswith(f"48 training rows are in {files / 'out/mined.jsonl'}\n")


@pytest.mark.parametrize("name", ["mined.jsonl.gz", "mined.json.gz"])
def test_rows_are_compressed_where_the_name_says_so(files, flags, name):
    mine(*flags, "--train_dir", files / "train.jsonl")
    for _ in range(2):
        mine(*flags, "--train_dir", files / "train.jsonl", "--save_rows_to", files / name)
        packed = (files / name).read_bytes()
        assert gzip.decompress(packed) == (files / "out/mined.jsonl").read_bytes()
        assert packed[3:8] == bytes(5)  # neither a name nor a time: the same rows are the same bytes
    assert len(list(checked_rows(files_source([files / name])))) == 48


def test_half_a_compressed_file_never_appears(files, flags, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(fastdense.retrieval.mining_rows, "_fields", full)
    with pytest.raises(OSError, match="the disk is full"):
        mine(*flags, "--train_dir", files / "train.jsonl", "--save_rows_to", files / "out" / "mined.jsonl.gz")
    assert not list((files / "out").iterdir())


def test_judgements_and_queries_do_as_well(files, flags):
    mine(*flags, "--train_dir", files / "train.jsonl")
    from_rows = (files / "out/mined.jsonl").read_bytes()
    mine(*flags, "--queries", files / "queries.jsonl", "--qrels", files / "qrels.tsv")
    assert (files / "out/mined.jsonl").read_bytes() == from_rows
    mine(*flags, "--queries", files / "queries.jsonl", "--qrels", files / "qrels.tsv", "--seed", 7)
    assert (files / "out/mined.jsonl").read_bytes() != from_rows


def test_queries_without_a_relevant_passage_are_left_out_and_counted(files, flags, capsys):
    (files / "qrels.tsv").write_text("3\t300\t1\n3\tgone\t1\n4\tgone\t1\n5\t500\t0\n")
    mine(*flags, "--queries", files / "queries.jsonl", "--qrels", files / "qrels.tsv")
    (row,) = read_lines(files / "out/mined.jsonl")
    assert row["query_id"] == "3"
    assert [passage["docid"] for passage in row["positive_passages"]] == ["300"]
    assert "left out: 47 queries without a relevant passage in the corpus\n" in capsys.readouterr().out


def test_a_positive_is_known_by_id_by_text_and_by_the_question(tmp_path, write_jsonl):
    rows = [
        {"docid": "a", "title": "One", "text": "amber  anchor"},
        {"docid": "b", "title": "Two", "text": " amber anchor\n"},
        {"docid": "c", "text": "apple"},
        {"docid": "d", "title": "Amber", "text": ""},
        {"docid": "e", "title": "amber", "text": ""},
    ]
    corpus = Corpus(files_source([write_jsonl(tmp_path / "corpus.jsonl", rows)]))
    queries = [
        JudgedQuery("0", "what is amber", [Passage("amber anchor")]),
        JudgedQuery("1", "what is  amber ", [Passage("something else", docid="c")]),
        JudgedQuery("2", "another", [Passage("", "Amber")]),
        JudgedQuery("3", "a third", [Passage("unheard of", docid="z")]),
    ]
    assert known_positives(queries, corpus) == [{"a", "b", "c"}, {"a", "b", "c"}, {"d"}, {"z"}]
    assert text_key(Passage("a", "b")) == text_key(Passage("a")) != text_key(Passage("A"))


def test_copies_of_a_positive_are_never_negatives(files, flags, tiny_rows, write_jsonl):
    """Every second passage of the corpus becomes a copy of a positive, under an id of its own."""
    copy = tiny_rows[0]["positive_passages"][0]["text"]
    corpus = read_lines(files / "corpus.jsonl")
    write_jsonl(files / "corpus.jsonl", [{**p, "text": copy} if i % 2 else p for i, p in enumerate(corpus)])
    mine(*flags, "--train_dir", files / "train.jsonl", "--sampling_strategy", "top")
    rows = read_lines(files / "out/mined.jsonl")
    assert all(passage["text"] != copy for passage in rows[0]["negative_passages"])
    assert any(passage["text"] == copy for passage in rows[1]["negative_passages"])


def test_formats_without_docids(tmp_path, write_jsonl):
    rows = [{"query_id": "7", "query": "who", "pos": ["amber", "apple"], "neg": ["cedar"]}]
    queries = read_training_queries(files_source([write_jsonl(tmp_path / "train.jsonl", rows)]))
    assert queries == [JudgedQuery("7", "who", [Passage("amber"), Passage("apple")])]


ROWS = ("--train_dir", "{files}/train.jsonl")
MISTAKES = [
    ([], "by --train_dir ROWS..., or by --queries FILE... and --qrels FILE"),
    (["--queries", "{files}/queries.jsonl"], "--queries FILE... and --qrels FILE"),
    ([*ROWS, "--qrels", "{files}/qrels.tsv"], "by --train_dir ROWS..., or by"),
    ([*ROWS, "--num_negatives", "0"], "--num_negatives must be at least 1, not 0"),
    ([*ROWS, "--range_min", "-1"], "--range_min must be at least 0, not -1"),
    ([*ROWS, "--range_min", "180"], "--range_max 200 leave 20 passages a query, fewer than --num_negatives 30"),
    ([*ROWS, "--range_max", "10"], "leave 10 passages a query"),
    ([*ROWS, "--max_score", "nan"], "--max_score must be a finite number, not nan"),
    ([*ROWS, "--relative_margin", "inf"], "--relative_margin must be a finite number"),
    ([*ROWS, "--max_score", "1", "--min_score", "2"], "--min_score 2.0 is above --max_score 1.0"),
    ([*ROWS, "--max_score", "-99"], "the rules leave no query a negative (discarded, max_score -99.0: "),
    ([*ROWS, "--sampling_strategy", "best"], "--sampling_strategy"),
    ([*ROWS, "--margin", "1"], "unknown flag --margin"),
    (["--train_dir", "{files}/none"], "none: there is no such file or directory"),
    (["--train_dir", "{files}/corpus.jsonl"], "corpus.jsonl, line 1: a row with a docid is a passage"),
    (["--train_dir", "{files}/ids.jsonl"], "ids.jsonl, line 1: the row holds token ids; negatives are mined for rows"),
    (["--train_dir", "{files}/no_id.jsonl"], "no_id.jsonl, line 1: no field holds the id"),
    (["--train_dir", "{files}/no_positive.jsonl"], "no_positive.jsonl, line 1: no field holds positive passages"),
    (["--train_dir", "{files}/twice.jsonl"], "twice.jsonl, line 2: the id '0' is that of a row above"),
    (["--train_dir", "{files}/unknown.jsonl"], "queries.npy holds no vector of the query 'new'"),
    (["--train_dir", "{files}/empty.jsonl"], "empty.jsonl: there are no rows in it"),
    (["--queries", "{files}/queries.jsonl", "--qrels", "{files}/other.tsv"], "no query has a relevant passage in"),
    ([*ROWS, "--corpus", "{files}/train.jsonl"], "train.jsonl, line 1: a row with a query_id is a query"),
    ([*ROWS, "--corpus", "{files}/small.jsonl"], "of --passage_reps is not in --corpus"),
    ([*ROWS, "--corpus", "{files}/tokens.jsonl"], "tokens.jsonl, line 1: the passage is a list of token ids"),
    ([*ROWS, "--passage_reps", "{files}/none/*"], "no file of representations matches"),
    ([*ROWS, "--query_reps", "{files}/none"], "there is no file of representations"),
    ([*ROWS, "--query_reps", "{files}/wide.npy"], "wide.npy have 9 dimensions"),
    ([*ROWS, "--save_rows_to", "{files}"], "must end in .jsonl, .json, .jsonl.gz, .json.gz: JSON lines are written"),
    ([*ROWS, "--save_rows_to", "{files}/z.parquet"], "z.parquet must end in .jsonl, .json, .jsonl.gz, .json.gz"),
    ([*ROWS, "--save_rows_to", "{files}/z.jsonl.bz2"], "z.jsonl.bz2 must end in"),
    ([*ROWS, "--save_rows_to", "{files}/folder.jsonl"], "folder.jsonl is a directory; name a file"),
    ([*ROWS, "--range_min", "500", "--range_max", "550"], "--range_min 500 skips all 305 passages of --passage_reps"),
    ([*ROWS, "--range_min", "200", "--range_max", "550", "--max_score", "-99"], "lower --range_min or loosen the thr"),
    ([*ROWS, "--range_max", "550", "--max_score", "-99"], "loosen the thresholds, or search more than 305 passages"),
    ([*ROWS, "--range_max", "305", "--max_score", "-99"], "raise --range_max or loosen the thresholds"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_mistakes_end_in_one_sentence(files, flags, tiny_rows, write_jsonl, arguments, sentence):
    positive = {"positive_passages": [{"text": "amber"}]}
    write_jsonl(files / "ids.jsonl", [{"query_id": "0", "query": "a", "positives": [[1]]}])
    write_jsonl(files / "no_id.jsonl", [{"query": "a", **positive}])
    write_jsonl(files / "no_positive.jsonl", [{"query_id": "0", "query": "a"}])
    write_jsonl(files / "twice.jsonl", [{"query_id": "0", "query": "a", **positive}] * 2)
    write_jsonl(files / "unknown.jsonl", [{"query_id": "new", "query": "a", **positive}])
    write_jsonl(files / "empty.jsonl", [])
    write_jsonl(files / "small.jsonl", [{"docid": "0", "text": "amber"}])
    write_jsonl(files / "tokens.jsonl", [{"text_id": "0", "text": [1, 2]}])
    (files / "folder.jsonl").mkdir()
    (files / "other.tsv").write_text("nobody\t300\t1\n")
    ids = [row["query_id"] for row in tiny_rows]
    write_representations(files / "wide.npy", Representations(ids, np.ones((48, 9), np.float32)))
    with pytest.raises(UserError) as error:
        mine(*flags, *(argument.format(files=files) for argument in arguments))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((files / "out").glob("*")) if (files / "out").exists() else True
