"""Data sets of the hub, against a stand-in of its HTTP API in a subprocess (``HF_ENDPOINT`` is read at import)."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import HubStandIn

from fastdense.data.hub import HubName, converted_files, parse_dataset_name, split_files
from fastdense.errors import UserError

ROOT = Path(__file__).parent.parent.parent

LOAD = """
import json, sys
from transformers import AutoTokenizer
from fastdense.data.training_rows import load_training_rows
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for name in sys.argv[3:]:
    try:
        rows = load_training_rows(tokenizer, dataset_name=name, cache_dir=sys.argv[2] or None)
        print(json.dumps([len(rows), rows[0]["origin"]]))
    except ValueError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def load_names(
    environment: dict[str, str], *names: str, tokenizer: Path | str = "bert-base-uncased", cache_dir: Path | str = ""
) -> list[list[Any]]:
    """For each name [number of rows, origin of the first] or [error class, message], from one process."""
    environment = environment | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOAD, str(tokenizer), str(cache_dir), *names]
    result = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


STREAM = """
import json, sys
from fastdense.data.sources import find_stream
for name in sys.argv[1:]:
    try:
        title, rows = find_stream(name)
        print(json.dumps([title, [row["query"] for row in rows]]))
    except ValueError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_streams_are_the_rows_and_leave_no_file(full_hub: HubStandIn, tmp_path: Path, tiny_rows: list) -> None:
    home = tmp_path / "home"
    names = ["Tevatron/wikipedia-nq", "Tevatron/wikipedia-nq:default", "org/plain", "org/plain/nope", "org/nothing"]
    environment = full_hub.environment(home) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STREAM, *names]
    result = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    script, converted, plain, no_split, nothing = [json.loads(line) for line in result.stdout.splitlines()]
    queries = [row["query"] for row in tiny_rows]
    assert (script[0], len(script[1])) == ("Tevatron/wikipedia-nq, split train", 128)
    assert converted == ["Tevatron/wikipedia-nq, split train of default", queries[:5]]
    assert plain == ["org/plain, split train", queries[:7]]
    assert (no_split[0], nothing[0]) == ("UserError", "UserError")
    assert "org/plain, split nope, cannot be loaded" in no_split[1]
    assert "the hub has no data set org/nothing" in nothing[1]
    kept = [path.name for path in home.rglob("*") if path.is_file()]
    assert [name for name in kept if name.endswith((".parquet", ".gz", ".arrow"))] == []


def write_split(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def full_hub(seed_hub: HubStandIn, tmp_path: Path, tiny_rows: list) -> HubStandIn:
    """``seed_hub`` with the parquet conversion of wikipedia-nq, and repositories of other kinds."""
    for split, count in (("train", 5), ("test", 6)):
        write_split(tmp_path / "converted" / "default" / split / "0000.parquet", tiny_rows[:count])
    seed_hub.add_dataset("Tevatron/wikipedia-nq", tmp_path / "converted", "refs/convert/parquet")

    (tmp_path / "script-only").mkdir()
    (tmp_path / "script-only" / "script-only.py").touch()
    seed_hub.add_dataset("org/script-only", tmp_path / "script-only")
    seed_hub.add_dataset("org/script-only", tmp_path / "converted", "refs/convert/parquet")

    write_split(tmp_path / "plain" / "data" / "train-00000-of-00001.parquet", tiny_rows[:7])
    seed_hub.add_dataset("org/plain", tmp_path / "plain")
    return seed_hub


@pytest.mark.slow
def test_hub_data_sets(full_hub: HubStandIn, tmp_path: Path) -> None:
    found = {
        "Tevatron/wikipedia-nq": [128, "Tevatron/wikipedia-nq: nq-train.jsonl.gz, line 1"],
        "Tevatron/wikipedia-nq/dev": [128, "Tevatron/wikipedia-nq: nq-dev.jsonl.gz, line 1"],
        "Tevatron/wikipedia-nq/test": [6, "Tevatron/wikipedia-nq: default/test/0000.parquet, row 1"],
        "Tevatron/wikipedia-nq:default": [5, "Tevatron/wikipedia-nq: default/train/0000.parquet, row 1"],
        "org/script-only": [5, "org/script-only: default/train/0000.parquet, row 1"],
        "org/plain": [7, "org/plain, split train, row 1"],
    }
    home = tmp_path / "home"
    assert load_names(full_hub.environment(home), *found) == list(found.values())

    served = len(full_hub.requests)
    assert load_names(full_hub.offline_environment(home), *found) == list(found.values()), "the cache is enough"
    assert len(full_hub.requests) == served


def test_errors_of_the_hub(full_hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path) -> None:
    expected = {
        "Tevatron/wikipedia-nq/nope": "neither a data file nor a parquet conversion for split nope (its files: nq-dev",
        "Tevatron/wikipedia-nq/train:nope": "neither a data file nor a parquet conversion for split train of nope",
        "org/plain/nope": 'org/plain, split nope, cannot be loaded (Unknown split "nope"',
        "org/nothing": "the hub has no data set org/nothing that you may read",
        "no such name": "the hub has no data set no such name",
    }
    answers = load_names(full_hub.environment(tmp_path / "home"), *expected, tokenizer=tiny_bert_dir)
    for (kind, message), part in zip(answers, expected.values(), strict=True):
        assert kind == "UserError"
        assert part in message


@pytest.mark.slow
def test_cache_dir_holds_everything(seed_hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    home = tmp_path / "home"
    settings: dict[str, Any] = {"tokenizer": tiny_bert_dir, "cache_dir": cache}
    assert load_names(seed_hub.environment(home), "Tevatron/wikipedia-nq", **settings)[0][0] == 128
    assert {entry.name for entry in cache.iterdir()} >= {"datasets--Tevatron--wikipedia-nq", "fastdense"}
    assert not (home / "hub" / "datasets--Tevatron--wikipedia-nq").exists()
    assert not (home / "datasets" / "fastdense").exists()
    offline = seed_hub.offline_environment(home)
    assert load_names(offline, "Tevatron/wikipedia-nq", **settings)[0][0] == 128


def test_without_network_or_cache(seed_hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path) -> None:
    offline = seed_hub.offline_environment(tmp_path / "home")
    [[kind, message]] = load_names(offline, "Tevatron/wikipedia-nq", tokenizer=tiny_bert_dir)
    assert kind == "UserError"
    assert "Tevatron/wikipedia-nq, split train, cannot be loaded" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squad", HubName("squad", "train", None)),
        ("Tevatron/wikipedia-nq", HubName("Tevatron/wikipedia-nq", "train", None)),
        ("Tevatron/wikipedia-nq/dev", HubName("Tevatron/wikipedia-nq", "dev", None)),
        ("Tevatron/mr-tydi:english", HubName("Tevatron/mr-tydi", "train", "english")),
        ("Tevatron/mr-tydi/dev:english", HubName("Tevatron/mr-tydi", "dev", "english")),
        ("Tevatron/mr-tydi:english/dev", HubName("Tevatron/mr-tydi", "dev", "english")),
    ],
)
def test_dataset_name(name: str, expected: HubName) -> None:
    assert parse_dataset_name(name) == expected


@pytest.mark.parametrize("name", ["", "a/b/c/d", "a/", "/a", "a/b:", "a:b:c", "a//b", "a/b/c:d/e", ":a"])
def test_bad_dataset_name(name: str) -> None:
    with pytest.raises(UserError, match=r"org/name\[/split\]\[:config\] is expected"):
        parse_dataset_name(name)


FILES = ["README.md", "nq-train.jsonl.gz", "nq-dev.jsonl.gz", "wikipedia-nq.py", "x/training.jsonl", ".train.jsonl"]
TYDI = [f"mrtydi-v1.1-{language}/{split}.jsonl.gz" for language in ("arabic", "thai") for split in ("train", "dev")]
SHARDS = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (FILES, HubName("o/n", "train", None), ["nq-train.jsonl.gz"]),
        (FILES, HubName("o/n", "dev", None), ["nq-dev.jsonl.gz"]),
        (FILES, HubName("o/n", "test", None), []),
        (FILES, HubName("o/n", "train", "default"), []),
        (TYDI, HubName("o/n", "train", "thai"), ["mrtydi-v1.1-thai/train.jsonl.gz"]),
        (SHARDS[::-1], HubName("o/n", "train", None), SHARDS),
        (["corpus.jsonl.gz", "n.py"], HubName("o/n", "train", None), ["corpus.jsonl.gz"]),
        (["corpus.jsonl.gz", "n.py"], HubName("o/n", "dev", None), []),
        (["nq-dev.jsonl.gz", "n.py"], HubName("o/n", "train", None), []),
        (["corpus.jsonl.gz", "more.jsonl.gz"], HubName("o/n", "train", None), []),
    ],
)
def test_data_files_are_found_by_split(files: list[str], name: HubName, expected: list[str]) -> None:
    assert split_files(files, name) == expected


def test_data_files_of_several_configs() -> None:
    with pytest.raises(UserError, match=r"several data files for split train \(mrtydi-v1.1-arabic/train.jsonl.gz, mrt"):
        split_files(TYDI, HubName("o/n", "train", None))


def test_converted_files() -> None:
    files = ["a/train/0001.parquet", "a/train/0000.parquet", "a/test/0000.parquet", "b/dev/0000.parquet"]
    assert converted_files(files, HubName("o/n", "train", None)) == ["a/train/0000.parquet", "a/train/0001.parquet"]
    assert converted_files(files, HubName("o/n", "train", "b")) == []
    assert converted_files(files, HubName("o/n", "dev", "b")) == ["b/dev/0000.parquet"]


def test_converted_files_of_several_configs() -> None:
    with pytest.raises(UserError, match="o/n has the configs a, b; name one, as in o/n/train:a"):
        converted_files(["a/train/0000.parquet", "b/train/0000.parquet"], HubName("o/n", "train", None))


def test_partly_converted() -> None:
    with pytest.raises(UserError, match="converted only a part of split train"):
        converted_files(["a/partial-train/0000.parquet"], HubName("o/n", "train", None))
