"""What ``train_dir`` or ``dataset_name`` stands for."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastdense.data.files import Source, files_source, row_files
from fastdense.data.hub import HUB_PREFIX, hub_source, hub_stream, is_on_hub
from fastdense.errors import UserError

LOCAL_FILES = "json"
IRDS_PREFIX = "irds:"  # before an id of the ir_datasets package
Found = TypeVar("Found")


def find_source(
    train_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    dataset_name: str,
    cache_dir: str | None = None,
) -> Source:
    """Find the files of ``train_dir`` or, without it, the hub's data set ``dataset_name`` (downloading its files).

    ``train_dir`` may be ``hub:`` and the name of a data set of the hub, too. With ``train_dir`` the ``dataset_name`` is
    not looked at: beside it, it only ever named the row format, which is detected.
    """
    if isinstance(train_dir, str) and is_on_hub(train_dir):
        return _of_the_hub(hub_source, train_dir.removeprefix(HUB_PREFIX), cache_dir, f"--train_dir {train_dir}")
    if train_dir:
        return files_source(row_files(train_dir))
    if dataset_name == LOCAL_FILES:
        raise UserError(
            "there is no training data: name it with --train_dir, or a data set of the hub with --dataset_name"
        )
    return _of_the_hub(hub_source, dataset_name, cache_dir, f"--dataset_name {dataset_name}")


def find_stream(dataset_name: str, cache_dir: str | None = None) -> tuple[str, Any]:
    """Name and rows (a ``datasets.IterableDataset``) of the hub's data set ``dataset_name``, read as one goes."""
    return _of_the_hub(hub_stream, dataset_name, cache_dir, f"--dataset_name {dataset_name}")


def _of_the_hub(
    find: Callable[[str, str | None], Found], dataset_name: str, cache_dir: str | None, given: str
) -> Found:
    """``given`` is the name with its flag, for messages."""
    if dataset_name.startswith((".", "/", "~")):
        raise UserError(f"{given} is a path; --train_dir names local files")
    if dataset_name.startswith(IRDS_PREFIX):
        raise UserError(
            f"{given} is a test collection, which has no training rows; encode, evaluate and --eval_dir read it"
        )
    try:
        return find(dataset_name, cache_dir)
    except UserError as error:
        raise UserError(f"{given}: {error}") from error
