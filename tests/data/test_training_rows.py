"""From files to tokenized rows: every format, text rules, the cache, and errors with file, line and field."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdense.data import tokenization, training_rows
from fastdense.data.tokenization import passage_identity
from fastdense.data.training_rows import load_training_rows
from fastdense.errors import UserError

Load = Callable[..., datasets.Dataset]
LoadRow = Callable[..., dict[str, Any]]
Ids = Callable[[str], list[int]]
WriteJsonl = Callable[[Path, list[dict[str, Any]]], Path]

FLAT = {"query": "who built the castle", "positive": "the castle", "negative": "an eagle"}


@pytest.mark.parametrize(
    "row",
    [
        {
            "query": "who built the castle",
            "positive_passages": [{"text": "the castle"}],
            "negative_passages": [{"text": "an eagle"}, {"text": "a pebble"}],
        },
        {"query": "who built the castle", "positives": ["the castle"], "negatives": ["an eagle", "a pebble"]},
        {"query": "who built the castle", "pos": ["the castle"], "neg": ["an eagle", "a pebble"]},
        {
            "anchor": "who built the castle",
            "positive": "the castle",
            "negative_1": "an eagle",
            "negative_2": "a pebble",
        },
    ],
)
def test_every_format_becomes_the_same_row(load_row: LoadRow, ids: Ids, row: dict[str, Any]) -> None:
    tokenized = load_row(row)
    assert tokenized["query"] == ids("who built the castle")
    assert tokenized["positives"] == [ids("the castle")]
    assert tokenized["negatives"] == [ids("an eagle"), ids("a pebble")]
    assert tokenized["positive_ids"] == [passage_identity(None, ids("the castle"))]
    assert tokenized["negative_ids"] == [passage_identity(None, ids(text)) for text in ("an eagle", "a pebble")]


def test_token_ids_stay_as_they_are(load_row: LoadRow) -> None:
    tokenized = load_row({"query": [7, 8, 9], "positives": [[10, 11]], "negatives": [[12], [13, 14, 15]]}, p_max_len=4)
    assert (tokenized["query"], tokenized["positives"]) == ([7, 8, 9], [[10, 11]])
    assert tokenized["negatives"] == [[12], [13, 14, 15]]


def test_cut_without_counting_special_tokens(load_row: LoadRow) -> None:
    row = {"query": list(range(5, 45)), "positives": [list(range(5, 45))], "negatives": [[5, 6]]}
    tokenized = load_row(row, q_max_len=4, p_max_len=6)
    assert (tokenized["query"], tokenized["positives"]) == ([5, 6, 7, 8], [[5, 6, 7, 8, 9, 10]])
    assert tokenized["negatives"] == [[5, 6]]


def test_titles_are_joined_passage_by_passage(load_row: LoadRow, ids: Ids) -> None:
    passages = [{"title": "castle", "text": "of stone"}, {"text": "of stone"}, {"title": None, "text": "of stone"}]
    tokenized = load_row({"query": "castle", "positive_passages": [*passages, {"title": "castle", "text": ""}]})
    assert tokenized["positives"] == [ids("castle of stone"), ids("of stone"), ids("of stone"), ids("castle")]


def test_separator_that_names_a_special_token(load_row: LoadRow, ids: Ids, tokenizer: Any) -> None:
    row = {"query": "castle", "positive_passages": [{"title": "castle", "text": "of stone"}]}
    tokenized = load_row(row, passage_field_separator="sep_token")
    assert tokenized["positives"] == [[*ids("castle"), tokenizer.sep_token_id, *ids("of stone")]]


def test_prefixes(load_row: LoadRow, ids: Ids) -> None:
    row = {"query": "castle", "positive_passages": [{"title": "bridge", "text": "of stone"}, {"text": "river"}]}
    tokenized = load_row(row, query_prefix="what is ", passage_prefix="with ")
    assert tokenized["query"] == ids("what is castle")
    assert tokenized["positives"] == [ids("with bridge of stone"), ids("with river")]


def test_passages_are_known_by_docid(load_row: LoadRow) -> None:
    passages = [{"docid": "1", "text": "bridge"}, {"docid": 1, "text": "river"}, {"docid": "2", "text": "bridge"}]
    first, second, third = load_row({"query": "castle", "positive_passages": passages})["positive_ids"]
    assert first == second == passage_identity("1", [])
    assert third != first


def test_identities_are_stable() -> None:
    assert passage_identity("1", []) == 3357948758365201916
    assert passage_identity(None, [1, 2]) == -4481120561541738079


def test_every_kind_of_file_at_once(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    rows = [{**FLAT, "query": word} for word in ("amber", "anchor", "apple", "arrow")]
    write_jsonl(tmp_path / "train" / "1.jsonl", rows[:1])
    (tmp_path / "train" / "2.json").write_text(json.dumps(rows[1:2]))
    (tmp_path / "train" / "3.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows[2]).encode()))
    pq.write_table(pa.Table.from_pylist(rows[3:]), tmp_path / "train" / "4.parquet")
    loaded = load(tmp_path / "train")
    assert [row["query"] for row in loaded] == [row["query"] for row in load(write_jsonl(tmp_path / "all.jsonl", rows))]
    places = ["1.jsonl, line 1", "2.json, item 1", "3.jsonl.gz, line 1", "4.parquet, row 1"]
    assert [row["origin"] for row in loaded] == [f"{tmp_path}/train/{place}" for place in places]


def test_row_order_with_several_processes(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"query": [5 + i % 40], "positives": [[i % 30 + 5]]} for i in range(2500)]
    )
    assert load(path, num_proc=12)["query"] == [[5 + i % 40] for i in range(2500)]


@pytest.mark.parametrize(
    ("rows", "asked", "expected"), [(10, 12, None), (1500, 12, 2), (40_000, 12, 12), (9000, 1, None)]
)
def test_few_rows_start_few_processes(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, tmp_path: Path, rows: int, asked: int, expected: int | None
) -> None:
    dataset = datasets.Dataset.from_dict({"query": [None] * rows})
    seen: dict[str, Any] = {}
    monkeypatch.setattr(datasets.Dataset, "map", lambda self, function, **options: seen.update(options))
    rules = tokenization.TextRules(32, 128, " ", "", "")
    tokenization.tokenize_rows(dataset, tokenizer, rules, folder=tmp_path, num_proc=asked)
    assert seen["num_proc"] == expected


def forbid_work(monkeypatch: pytest.MonkeyPatch, reading: bool = True) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("this should have come from the cache")

    monkeypatch.setattr(tokenization.RowTokenizer, "__call__", refuse)
    if reading:
        monkeypatch.setattr(training_rows, "_write_checked_rows", refuse)


def test_a_second_start_reads_and_tokenizes_nothing(
    load: Load, tiny_bert_dir: Path, tmp_path: Path, tiny_rows: list, write_jsonl: WriteJsonl, monkeypatch: Any
) -> None:
    from transformers import AutoTokenizer

    path = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)
    first = load(path)
    forbid_work(monkeypatch)
    used = AutoTokenizer.from_pretrained(tiny_bert_dir)
    used(["a text", "another"], padding=True, truncation=True, max_length=3)  # changes the tokenizer's state
    assert load(path, tokenizer=used).to_list() == first.to_list()


def test_the_cache_is_where_it_was_asked_for(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [FLAT]))
    assert all(Path(file["filename"]).is_relative_to(tmp_path / "cache") for file in loaded.cache_files)


@pytest.mark.parametrize(
    "changed",
    [
        {"q_max_len": 5},
        {"p_max_len": 5},
        {"passage_field_separator": "-"},
        {"query_prefix": "a "},
        {"passage_prefix": "a "},
    ],
)
def test_other_settings_are_tokenized_anew_but_not_read(
    load: Load, tmp_path: Path, write_jsonl: WriteJsonl, monkeypatch: Any, changed: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [FLAT])
    load(path)
    monkeypatch.setattr(training_rows, "_write_checked_rows", None)
    assert len(load(path, **changed)) == 1
    forbid_work(monkeypatch)
    load(path)
    with pytest.raises(AssertionError, match="from the cache"):
        load(path, **{name: value * 2 for name, value in changed.items()})


def test_a_cache_that_cannot_be_made(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=f"cannot be made at {tmp_path}/cache/.*; name another directory with --data_c"):
        load(write_jsonl(tmp_path / "rows.jsonl", [FLAT]))


def test_changed_files_are_read_anew(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = tmp_path / "rows.jsonl"
    load(write_jsonl(path, [FLAT]))
    assert len(load(write_jsonl(path, [FLAT, FLAT]))) == 2


def test_a_failed_start_leaves_nothing_behind(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [FLAT, {"query": 1}])
    for _ in range(2):
        with pytest.raises(UserError, match="line 2"):
            load(path)
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"query": "who"}, "line 3: no field holds positive passages"),
        ({"query": 3, "positive": "p"}, "line 3: the field query is a number, a string is expected"),
        ({"query": "who", "positive": None}, "line 3: the field positive is missing or null"),
        ({"query": "who", "pos": ["p"]}, r"line 3: the row's format is FlagEmbedding \(pos\), that of the rows before"),
        ({"query": " ", "positive": "p"}, "line 3: the query is empty: it has no token"),
        ({"query": "who", "positive": ""}, "line 3: positive passage 1 is empty"),
        ({"query": "who", "positive": "p", "negative": "n", "negative_1": "\n"}, "line 3: negative passage 2 is empty"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_bad_row_is_named(load: Load, tmp_path: Path, name: str, bad: dict[str, Any], message: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in [FLAT, FLAT, bad, FLAT]).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    with pytest.raises(UserError, match=f"{path}, {message}"):
        load(path)


def test_a_bad_row_in_parquet_is_named(load: Load, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([FLAT] * 300 + [FLAT | {"query": None}]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet, row 301: the field query is missing or null"):
        load(tmp_path / "rows.parquet")


def test_the_first_row_of_a_second_format_is_named(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    files = [
        write_jsonl(tmp_path / "a.jsonl", [FLAT]),
        write_jsonl(tmp_path / "b.jsonl", [{"query": "a", "pos": ["b"]}]),
    ]
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: the row's format is FlagEmbedding"):
        load(files)


def test_a_bad_row_among_many_is_named_from_a_worker_process(
    load: Load, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    rows = [{"query": [5], "positives": [[6]]} for _ in range(2100)]
    rows[2050] = {"query": [5], "positives": [[]]}
    with pytest.raises(UserError, match="line 2051: positive passage 1 is empty"):
        load(write_jsonl(tmp_path / "rows.jsonl", rows), num_proc=4)


def test_ids_beyond_the_vocabulary(load_row: LoadRow, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=rf"line 1: negative passage 2 holds the token id {len(tokenizer)}, but"):
        load_row({"query": [5], "positives": [[5]], "negatives": [[5], [5, len(tokenizer)]]})


@pytest.mark.parametrize("side", ["query", "passage"])
@pytest.mark.parametrize("prefix", ["what is ", ""])
def test_a_prefix_cannot_be_put_before_ids(load: Load, tmp_path: Path, write_jsonl: WriteJsonl, side: str, prefix: str):
    texts = {"query": "who", "positives": ["castle"], "negatives": ["stone"]}
    ids = {**texts, **({"query": [5]} if side == "query" else {"negatives": ["stone", [6]]})}
    path = write_jsonl(tmp_path / "rows.jsonl", [texts, ids])
    if not prefix:
        load(path, **{f"{side}_prefix": prefix})
        return
    message = rf"rows\.jsonl, line 2: the {side} prefix 'what is ' cannot be put before .* --source_{side}_prefix"
    with pytest.raises(UserError, match=message):
        load(path, **{f"{side}_prefix": prefix})


@pytest.mark.parametrize("flag", ["q_max_len", "p_max_len"])
def test_a_length_without_room(load_row: LoadRow, flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag} is 2, but the tokenizer adds 2 special tokens .* at least 3"):
        load_row(FLAT, **{flag: 2})


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_files_without_rows(load: Load, tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: there are no rows in it"):
        load(path)


def test_an_empty_file_among_others_is_no_error(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    assert len(load([write_jsonl(tmp_path / "a.jsonl", []), write_jsonl(tmp_path / "b.jsonl", [FLAT])])) == 1


def test_train_dir_goes_before_dataset_name(load: Load, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(tmp_path / "train" / "rows.jsonl", [FLAT])
    assert len(load(path.parent, dataset_name="Tevatron/wikipedia-nq")) == 1


def test_no_data_at_all(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="there is no training data: name it with --train_dir"):
        load_training_rows(tokenizer)


def test_a_path_as_dataset_name(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"--dataset_name \./rows is a path; --train_dir names"):
        load_training_rows(tokenizer, dataset_name="./rows")
