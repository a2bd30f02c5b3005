"""Rows of corpora and queries, shards of them, and held-out sets."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdense.data.files import files_source, row_files
from fastdense.errors import UserError
from fastdense.retrieval.evaluation_set import read_evaluation_set
from fastdense.retrieval.texts import Text, parse_text, read_texts


@pytest.mark.parametrize(
    ("row", "is_query", "text"),
    [
        ({"text_id": "a", "text": "x"}, False, Text("a", "x")),
        ({"text_id": 7, "text": "x"}, True, Text("7", "x")),
        ({"text_id": "a", "text": [3, 4]}, False, Text("a", token_ids=[3, 4])),
        ({"docid": "a", "title": "t", "text": "x"}, False, Text("a", "x", "t")),
        ({"docid": "a", "title": "", "text": "x"}, False, Text("a", "x", "")),
        ({"docid": "a", "title": None, "text": "x"}, False, Text("a", "x")),
        ({"docid": "a", "text": "x", "more": 1}, False, Text("a", "x")),
        ({"query_id": "q", "query": "x", "positive_passages": []}, True, Text("q", "x")),
        ({"_id": "a", "title": "t", "text": "x", "metadata": {}}, False, Text("a", "x", "t")),
        ({"_id": "q", "text": "x"}, True, Text("q", "x")),
    ],
)
def test_rows(row, is_query, text):
    assert parse_text(row, "f, line 1", is_query=is_query) == text


@pytest.mark.parametrize(
    ("row", "is_query", "sentence"),
    [
        ([], False, "the row is a list, an object with an id and a text is expected"),
        ({"text": "x"}, False, "no field holds the id: one of text_id, docid, query_id, _id is expected"),
        ({"query_id": "q", "query": "x"}, False, "is a query; add --encode_is_qry"),
        ({"docid": "q", "text": "x"}, True, "is a passage; leave --encode_is_qry out"),
        ({"docid": "a"}, False, "the field text is missing or null, a string is expected"),
        ({"docid": "a", "text": 3}, False, "the field text is a number, a string is expected"),
        ({"docid": "a", "title": [], "text": "x"}, False, "the field title is a list, a string is expected"),
        ({"query_id": "a", "text": "x"}, True, "the field query is missing or null"),
        ({"docid": True, "text": "x"}, False, "the field docid is a boolean"),
        ({"docid": "", "text": "x"}, False, "the docid '' is empty or holds a tab or a line break"),
        ({"docid": "a\tb", "text": "x"}, False, r"the docid 'a\\tb' is empty or holds a tab"),
        ({"docid": "a\r", "text": "x"}, False, "line break"),
        ({"text_id": "a", "text": [1, "x"]}, False, r"the field text\[1\] is 'x', a token id is expected"),
        ({"text_id": "a", "text": [-1]}, False, r"the field text\[0\] is -1, a token id is expected"),
        ({"docid": "a", "text": "\ud800"}, False, "half a surrogate pair"),
    ],
)
def test_malformed_rows(row, is_query, sentence):
    with pytest.raises(UserError, match="^f, line 1: .*" + sentence):
        parse_text(row, "f, line 1", is_query=is_query)


ROWS = [{"docid": str(i), "text": f"text {i}"} for i in range(10)]


def as_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_json(path):
    path.write_text(json.dumps(ROWS))


def as_gzip(path):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def as_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("c.jsonl", as_jsonl), ("c.json", as_json), ("c.jsonl.gz", as_gzip), ("c.parquet", as_parquet), ("c", as_jsonl)],
)
def test_file_formats_and_strided_shards(tmp_path, name, write):
    write(tmp_path / name)
    source = files_source(row_files(tmp_path / name))
    assert [text.text_id for text in read_texts(source, is_query=False)] == [str(i) for i in range(10)]
    shards = [read_texts(source, is_query=False, num_shards=3, shard_index=i) for i in range(3)]
    assert [[text.text_id for text in shard] for shard in shards] == [list("0369"), list("147"), list("258")]


def test_an_id_twice_names_both_lines(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "c.jsonl", [*ROWS, ROWS[3]])
    with pytest.raises(UserError, match=r"c\.jsonl, line 11: the id '3' is that of .*c\.jsonl, line 4 already"):
        read_texts(files_source([path]), is_query=False)


def test_a_shard_without_rows(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "c.jsonl", ROWS[:2])
    with pytest.raises(UserError, match="there is no row in shard 2 of 3 to encode"):
        read_texts(files_source([path]), is_query=False, num_shards=3, shard_index=2)


@pytest.fixture
def eval_directory(tmp_path, write_jsonl):
    directory = tmp_path / "held-out"
    write_jsonl(directory / "corpus.jsonl", [*ROWS, {"docid": "t", "title": "title", "text": "text"}])
    write_jsonl(directory / "queries.jsonl", [{"query_id": f"q{i}", "query": f"query {i}"} for i in range(3)])
    (directory / "qrels.txt").write_text("q0 0 1 1\nq2 0 t 1\nq2 0 2 0\n")
    return directory


def test_eval_directory(eval_directory):
    held_out = read_evaluation_set(eval_directory)
    assert held_out.queries == [Text("q0", "query 0"), Text("q2", "query 2")]  # q1 is not judged
    assert len(held_out.passages) == 11
    assert held_out.passages[-1] == Text("t", "text", "title")
    assert held_out.qrels == {"q0": {"1": 1}, "q2": {"t": 1, "2": 0}}


def test_eval_directory_of_beir(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d", "title": "", "text": "x"}])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "y"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    held_out = read_evaluation_set(str(tmp_path))
    assert (held_out.queries, held_out.passages) == ([Text("q", "y")], [Text("d", "x", "")])
    assert held_out.qrels == {"q": {"d": 1}}
    (tmp_path / "qrels" / "dev.tsv").write_text("q\td\t2\n")
    assert read_evaluation_set(tmp_path).qrels == {"q": {"d": 1}}  # the test split's
    (tmp_path / "qrels" / "test.tsv").rename(tmp_path / "qrels" / "train.tsv")
    with pytest.raises(UserError, match=r"holds several files \(dev\.tsv, train\.tsv\): copy the wanted one"):
        read_evaluation_set(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("corpus.jsonl", None, r"holds no corpus\.jsonl"),
        ("queries.jsonl", None, r"holds no queries\.jsonl"),
        ("qrels.txt", None, r"holds no qrels\.txt"),
        ("qrels.txt", "q9 0 1 1\n", "the judgements speak of the query 'q9'"),
        ("qrels.txt", "q0 0 nowhere 1\n", "no passage that the judgements call relevant is in the corpus"),
        ("corpus.jsonl", '{"docid": "1"}\n', r"corpus\.jsonl, line 1: the field text is missing"),
        ("queries.jsonl", "{", r"queries\.jsonl, line 1: not JSON"),
        ("queries.jsonl", "", "there is no row in it"),
    ],
)
def test_bad_eval_directories(eval_directory, name, content, sentence):
    if content is None:
        (eval_directory / name).unlink()
    else:
        (eval_directory / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_evaluation_set(eval_directory)


def test_no_eval_directory(tmp_path):
    with pytest.raises(UserError, match=r"there is no directory .*none; one with corpus\.jsonl"):
        read_evaluation_set(tmp_path / "none")
