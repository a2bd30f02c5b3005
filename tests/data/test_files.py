"""Files of rows: what is read, where rows stand, and what is said about files that cannot be read."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from locked import locked

from fastdense.data.files import file_identities, read_file, row_files
from fastdense.errors import UserError

ROWS: list[dict[str, Any]] = [{"query": "a", "pos": ["é"]}, {"query": "b", "pos": ["q"]}, {"query": "c", "pos": ["r"]}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()


def str_only(value: Any) -> str:
    """A test's name without the contents of its file."""
    return value if isinstance(value, str) else "file"


@pytest.mark.parametrize(
    ("name", "content", "unit"),
    [
        ("rows.jsonl", LINES, "line"),
        ("rows.json", LINES, "line"),
        ("rows.json", LIST, "item"),
        ("rows.jsonl", b"\n " + LIST, "item"),
        ("rows.jsonl", b"\xef\xbb\xbf" + LINES, "line"),
        ("rows.jsonl", LINES.rstrip(), "line"),
        ("rows.jsonl", LINES.replace(b"\n", b"\r\n"), "line"),
        ("rows.jsonl.gz", gzip.compress(LINES), "line"),
        ("rows.json.gz", gzip.compress(LIST), "item"),
        ("rows.txt", LINES, "line"),
    ],
    ids=str_only,
)
def test_json(tmp_path: Path, name: str, content: bytes, unit: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert list(read_file(path)) == [(f"{path}, {unit} {i}", row) for i, row in enumerate(ROWS, start=1)]


def test_blank_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + LINES.replace(b"\n", b"\n \n"))
    assert [origin for origin, _ in read_file(path)] == [f"{path}, line {i}" for i in (2, 4, 6)]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert list(read_file(path)) == [(f"{path}, row {i}", row) for i, row in enumerate(ROWS, start=1)]


def test_a_directory_stands_for_its_row_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "c.parquet", "d.jsonl.gz", "README.md", ".hidden.jsonl", "vocab.txt"):
        (tmp_path / name).touch()
    (tmp_path / "e.jsonl").mkdir()
    names = ["a.json", "b.jsonl", "c.parquet", "d.jsonl.gz"]
    assert row_files(tmp_path) == [tmp_path / name for name in names]
    assert row_files(str(tmp_path)) == [tmp_path / name for name in names]


def test_a_list_of_paths_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    files = [tmp_path / "z.jsonl", tmp_path / "one" / "a.jsonl"]
    for file in files:
        file.touch()
    assert row_files([files[0], tmp_path / "one"]) == files


def test_identity_changes_with_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    before = file_identities([path])
    assert before == file_identities([path])
    path.write_bytes(LINES + LINES)
    assert file_identities([path]) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", LINES + b"{\n", r"rows.jsonl, line 4: not JSON \(.*column 2\); one JSON object a line"),
        ("rows.jsonl.gz", gzip.compress(LINES + b"{]}\n"), r"rows.jsonl.gz, line 4: not JSON"),
        ("rows.jsonl", b"query,positive\n", "rows.jsonl, line 1: not JSON"),
        ("rows.jsonl", LINES + b'{"query": "\xff"}\n', "rows.jsonl, line 4: not UTF-8 text"),
        ("rows.jsonl", b'{"a":' * 100_000 + b"\n", "rows.jsonl, line 1: the JSON is nested too deeply"),
        ("rows.json", b'[{"query": "a"},\n{"query": ]', r"rows.json: not JSON \(.* line 2 column 11\)"),
        ("rows.json", b'{\n"query": "a"}', "rows.json, line 1: not JSON"),
        ("rows.jsonl.gz", LINES, "rows.jsonl.gz: the gzip file is damaged"),
        ("rows.jsonl.gz", gzip.compress(LINES)[:-9], "rows.jsonl.gz: the gzip file is damaged or cut short"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 50, "rows.jsonl.gz: the gzip file is damaged"),
        ("rows.parquet", LINES, "rows.parquet: not a readable parquet file"),
        ("rows.parquet", b"", "rows.parquet: not a readable parquet file"),
    ],
    ids=str_only,
)
def test_unreadable(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_file(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: there is no such file or directory"):
        row_files(tmp_path / "none.jsonl")


@pytest.mark.parametrize("locked_name", ["rows", "rows/a.jsonl"])
@pytest.mark.parametrize("name", ["rows", "rows/a.jsonl"])
def test_what_may_not_be_read(tmp_path: Path, locked_name: str, name: str) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_bytes(LINES)
    with locked(tmp_path / locked_name), pytest.raises(UserError, match=rf"{name}.* cannot be read: permission denied"):
        row_files(tmp_path / name)


def test_a_directory_without_row_files(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(UserError, match=r"no file in this directory ends in \.jsonl, "):
        row_files(tmp_path)
