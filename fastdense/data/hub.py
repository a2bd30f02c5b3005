"""Training rows of the Hugging Face hub's data sets, those that hold a loading script included.

The ``datasets`` library no longer runs loading scripts. Such a repository (``Tevatron/wikipedia-nq``) still holds what
its script read, data files named after their splits, and the hub's own conversion to parquet: one of those is read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import CacheNotFound, GatedRepoError, HFValidationError, RepositoryNotFoundError

from fastdense.data.files import Source, file_identities, files_source, is_row_file
from fastdense.errors import UserError

HUB_PREFIX = "hub:"  # before a name where a path could stand
PARQUET_REVISION = "refs/convert/parquet"
OTHER_SPLITS = ("dev", "validation", "valid", "val", "test")


@dataclass(frozen=True)
class HubName:
    """The parts of ``--dataset_name``."""

    repository: str
    split: str
    config: str | None


def is_on_hub(name: str) -> bool:
    """Whether ``name``, which may be a path, is one of the hub."""
    return name.startswith(HUB_PREFIX)


def parse_dataset_name(name: str) -> HubName:
    """``org/name[/split][:config]``; Tevatron v1's order, ``org/name:config/split``, is understood too."""
    for order in (r"(/(?P<split>{part}))?(:(?P<config>{part}))?", r":(?P<config>{part})/(?P<split>{part})"):
        match = re.fullmatch((r"(?P<repository>{part}(/{part})?)" + order).format(part="[^/:]+"), name)
        if match:
            return HubName(match["repository"], match["split"] or "train", match["config"])
    raise UserError(f"{name}: org/name[/split][:config] is expected, as in Tevatron/wikipedia-nq/dev")


def hub_source(dataset_name: str, cache_dir: str | None = None) -> Source:
    """The rows of the hub's ``dataset_name``, whose files are downloaded or found in the cache by now."""
    name = parse_dataset_name(dataset_name)
    files = _list_files(name.repository, None, cache_dir)
    script = name.repository.split("/")[-1] + ".py"
    if script in files:
        _download(name, [script], None, cache_dir)  # never run, but known by it again when offline
        return _download(name, *_script_files(name, files, cache_dir), cache_dir)
    return _dataset(name, cache_dir)


def hub_stream(dataset_name: str, cache_dir: str | None = None) -> tuple[str, Any]:
    """What messages call the hub's ``dataset_name``, and its rows as a ``datasets.IterableDataset``, not yet read."""
    import datasets

    name = parse_dataset_name(dataset_name)
    files = _list_files(name.repository, None, cache_dir)
    try:
        if name.repository.split("/")[-1] + ".py" in files:
            chosen, revision = _script_files(name, files, cache_dir)
            paths = [f"hf://datasets/{name.repository}@{revision or 'main'}/{file}" for file in chosen]
            kind = "parquet" if chosen[0].endswith(".parquet") else "json"
            rows = datasets.load_dataset(kind, data_files=paths, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(
                name.repository, name.config, split=name.split, streaming=True, cache_dir=cache_dir
            )
    except UserError:
        raise
    except Exception as error:
        raise _cannot_be_loaded(name, error) from error
    return _title(name), rows


def _script_files(name: HubName, files: Sequence[str], cache_dir: str | None) -> tuple[list[str], str | None]:
    """The split's files in a repository with a script, and the revision that they are in."""
    chosen = split_files(files, name)
    if chosen:
        return chosen, None
    chosen = converted_files(_list_files(name.repository, PARQUET_REVISION, cache_dir), name)
    if chosen:
        return chosen, PARQUET_REVISION
    where = f"split {name.split}" + (f" of {name.config}" if name.config else "")
    raise UserError(
        f"{name.repository} holds a loading script, which is not run, and neither a data file nor a parquet conversion "
        f"for {where} (its files: {', '.join(files)}); name another split, or download the rows and name their files"
    )


def split_files(files: Sequence[str], name: HubName) -> list[str]:
    """The data files that have the split (and the config, if one is asked for) as a word in their path.

    Files that differ in more than numbers (``a-train``, ``b-train``) are no shards of one split: :class:`UserError`.
    """
    wanted = [name.split] + ([name.config] if name.config else [])
    rows = [file for file in files if is_row_file(Path(file).name)]
    chosen = sorted(file for file in rows if all(_has_word(file, word) for word in wanted))
    if not chosen and len(rows) == 1 and wanted == ["train"] and not any(_has_word(rows[0], s) for s in OTHER_SPLITS):
        return rows  # a corpus (Tevatron/wikipedia-nq-corpus): its one file is the default split
    if len({re.sub(r"\d+", "", file) for file in chosen}) > 1:
        raise UserError(
            f"{name.repository} has several data files for split {name.split} ({', '.join(chosen)}); "
            "name one by its config, org/name/split:config, or download it and name the file"
        )
    return chosen


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", path) is not None


def converted_files(files: Sequence[str], name: HubName) -> list[str]:
    """The split's files in the hub's parquet conversion, ``config/split/0000.parquet`` ..."""
    matches = [re.fullmatch(r"(.+)/(partial-)?" + re.escape(name.split) + r"/\d+\.parquet", file) for file in files]
    found = [match for match in matches if match and match[1] == (name.config or match[1])]
    configs = sorted({match[1] for match in found})
    if len(configs) > 1:
        raise UserError(
            f"{name.repository} has the configs {', '.join(configs)}; name one, as in "
            f"{name.repository}/{name.split}:{configs[0]}"
        )
    if any(match[2] for match in found):
        raise UserError(
            f"{name.repository}: the hub converted only a part of split {name.split} to parquet; "
            "download the rows and name their files"
        )
    return sorted(match[0] for match in found)


def _list_files(repository: str, revision: str | None, cache_dir: str | None) -> list[str]:
    """The files of a revision on the hub or, if it cannot be reached, those of it that are in the cache."""
    try:
        return huggingface_hub.list_repo_files(repository, repo_type="dataset", revision=revision)
    except GatedRepoError as error:
        raise UserError(
            f"the hub wants its terms for {repository} accepted; do so on its page and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no data set {repository} that you may read; check the name, log in with `hf auth login` if "
            "it is private, or name local files"
        ) from error
    except Exception:  # no network, offline mode, no such revision: the classes depend on the HTTP client in use
        return _cached_files(repository, revision or "main", cache_dir)


def _cached_files(repository: str, revision: str, cache_dir: str | None) -> list[str]:
    try:
        cache = huggingface_hub.scan_cache_dir(cache_dir)
    except CacheNotFound:
        return []
    return [
        str(file.file_path.relative_to(snapshot.snapshot_path))
        for repo in cache.repos
        if (repo.repo_id, repo.repo_type) == (repository, "dataset")
        for snapshot in repo.revisions
        if revision in snapshot.refs
        for file in snapshot.files
    ]


def _download(name: HubName, files: Sequence[str], revision: str | None, cache_dir: str | None) -> Source:
    """Fetch the repository's ``files`` (or find them in the cache) and return their rows."""
    try:
        folder = huggingface_hub.snapshot_download(
            name.repository,
            repo_type="dataset",
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(files),
        )
    except Exception as error:
        raise UserError(f"{name.repository}: {', '.join(files)} cannot be fetched ({_line(error)})") from error
    return files_source([Path(folder, file) for file in files], [f"{name.repository}: {file}" for file in files])


def _dataset(name: HubName, cache_dir: str | None) -> Source:
    """The rows of a repository without a script, as the ``datasets`` library loads them."""
    import datasets  # encode and search, which read local files mostly, start faster without it

    title = _title(name)
    try:
        rows = datasets.load_dataset(name.repository, name.config, split=name.split, cache_dir=cache_dir)
    except Exception as error:  # of some ten classes: not found, no such config or split, unreadable, no network ...
        raise _cannot_be_loaded(name, error) from error

    def read() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(rows, start=1):
            yield f"{title}, row {number}", row

    return Source(title, file_identities([file["filename"] for file in rows.cache_files]), read)


def _title(name: HubName) -> str:
    return f"{name.repository}, split {name.split}" + (f" of {name.config}" if name.config else "")


def _cannot_be_loaded(name: HubName, error: Exception) -> UserError:
    return UserError(
        f"{_title(name)}, cannot be loaded ({_line(error)}); check the name as org/name[/split][:config], or name "
        "local files"
    )


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
