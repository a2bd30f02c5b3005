"""What ``train_dir`` or ``dataset_name`` stands for: rows, each with where it stands."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdense.data.files import read_file, row_files
from fastdense.errors import UserError

LOCAL_FILES = "json"


@dataclass(frozen=True)
class Source:
    """Rows that have been found but not yet read."""

    name: str
    """How messages call it."""
    identity: list[Any]
    """Equal only for the same contents: what a cache is found by; JSON-serializable."""
    read: Callable[[], Iterator[tuple[str, Any]]]
    """Yields (origin, parsed row) from the first row on."""


def find_source(
    train_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    dataset_name: str,
    cache_dir: str | None = None,
) -> Source:
    """Find the files of ``train_dir`` or, without it, the hub's data set ``dataset_name`` (downloading its files).

    With ``train_dir`` the ``dataset_name`` is not looked at: beside it, it only ever named the row format, which is
    detected.
    """
    if train_dir:
        return files_source(row_files(train_dir))
    if dataset_name == LOCAL_FILES:
        raise UserError(
            "there is no training data: name it with --train_dir, or a data set of the hub with --dataset_name"
        )
    from fastdense.data.hub import hub_source

    return hub_source(dataset_name, cache_dir)


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
