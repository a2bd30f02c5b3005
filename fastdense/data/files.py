"""Parsed rows out of local files, each with where it stands."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from fastdense.errors import UserError
from fastdense.files import check_readable

ROW_FILE_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """Rows that have been found but not yet read."""

    name: str
    """How messages call it."""
    identity: list[Any]
    """Equal only for the same contents: what a cache is found by; JSON-serializable."""
    read: Callable[[], Iterator[tuple[str, Any]]]
    """Yields (origin, parsed row) from the first row on."""


def row_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that ``paths`` (a file, a directory or a list of them) stand for, a directory's in order of name.

    A directory stands for the files right in it that end in one of :data:`ROW_FILE_SUFFIXES`.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    return [file for path in paths for file in _files_at(Path(path))]


def _files_at(path: Path) -> list[Path]:
    check_readable(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or directory; name a file of rows or a directory of such files")
    files = sorted(file for file in path.iterdir() if is_row_file(file.name) and file.is_file())
    if not files:
        raise UserError(f"{path}: no file in this directory ends in {', '.join(ROW_FILE_SUFFIXES)}; put the rows there")
    for file in files:
        check_readable(file)
    return files


def is_row_file(name: str) -> bool:
    """Whether a file of this name, found in a directory or repository, is read as rows."""
    return name.endswith(ROW_FILE_SUFFIXES) and not name.startswith(".")


def files_source(files: Sequence[Path], names: Sequence[str] | None = None) -> Source:
    """The rows of local files, one after the other; ``names`` replace the paths in messages."""
    names = names or [str(file) for file in files]

    def read() -> Iterator[tuple[str, Any]]:
        for file, name in zip(files, names, strict=True):
            yield from read_file(file, name)

    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"
    return Source(title, file_identities(files), read)


def file_identities(files: Sequence[str | os.PathLike[str]]) -> list[Any]:
    """Path, size in bytes and modification time in ns of each file."""
    identities = []
    for file in files:
        path = Path(file).resolve()
        status = path.stat()
        identities.append([str(path), status.st_size, status.st_mtime_ns])
    return identities


def read_file(path: Path, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield ``(origin, row)`` for each row of one file; ``origin`` is "NAME, line 3" (or row, or item), from 1.

    ``.parquet`` by its suffix; anything else is JSON, a row a line or one list of rows, compressed if it ends in .gz.
    ``name`` replaces the path in origins and errors. Raises :class:`UserError` at the first thing that is unreadable.
    """
    name = name or str(path)
    reader = _read_parquet if path.suffix == ".parquet" else _read_json
    try:
        yield from reader(path, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name}: the gzip file is damaged or cut short ({error}); fetch or write it again") from error
    except pa.ArrowException as error:
        raise UserError(f"{name}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", row


def _read_json(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        start = _first_byte(file)
        yield from _read_list(file, name) if start == b"[" else _read_lines(file, name)


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is not white space; leaves ``file`` at its start, behind a byte order mark."""
    origin = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
    file.seek(origin)
    while (byte := file.read(1)).isspace():
        pass
    file.seek(origin)
    return byte


def _read_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            origin = f"{name}, line {number}"
            yield origin, _parse(line.rstrip(), origin, "one JSON object a line")


def _read_list(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_parse(file.read(), name, "one JSON list of rows"), start=1):
        yield f"{name}, item {number}", row


def _parse(text: bytes, origin: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{origin}: not JSON ({error.msg} at {place}); {expected} is expected") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: not UTF-8 text; save the file as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{origin}: the JSON is nested too deeply; {expected} is expected") from error
