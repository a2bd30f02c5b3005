"""What a user names as a corpus or as queries: files, or a collection by name."""

from collections.abc import Sequence
from pathlib import Path

from fastdense.data.files import Source, files_source, row_files
from fastdense.data.hub import is_on_hub
from fastdense.retrieval.hub_collection import hub_texts
from fastdense.retrieval.irds import irds_texts, is_irds


def is_collection(name: str) -> bool:
    """Whether ``name`` is an id of ir_datasets (``irds:``) or a data set of the hub (``hub:``)."""
    return is_irds(name) or is_on_hub(name)


def text_source(names: Sequence[str], *, is_query: bool, cache_dir: str | None = None) -> Source:
    """The rows of files and directories, or of the one collection that ``names`` is.

    Raises:
        UserError: there is no such file, directory or collection.
    """
    if len(names) == 1 and is_irds(names[0]):
        return irds_texts(names[0], is_query=is_query)
    if len(names) == 1 and is_on_hub(names[0]):
        return hub_texts(names[0], cache_dir, is_query=is_query)
    return files_source(row_files(names))


def text_files(names: Sequence[str] | None) -> list[Path]:
    """The files that :func:`text_source` reads the rows of ``names`` from; none for a collection. Raises as it does."""
    if names is None or (len(names) == 1 and is_collection(names[0])):
        return []
    return row_files(names)
