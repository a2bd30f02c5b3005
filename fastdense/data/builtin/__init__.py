"""The built-in retrieval data set: Python documentation, made on the spot from what is installed.

Queries are the summaries of docstrings, passages are signatures, the docstrings' rests and code. See
:func:`write_builtin_data`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastdense.data.builtin.extraction import STANDARD_LIBRARY, DocumentedObject, documented_objects
from fastdense.data.builtin.interpreter import compiled_objects, help_topics
from fastdense.data.builtin.retrieval_set import Passage, Query, RetrievalSet, build_retrieval_set, hard_negatives
from fastdense.data.builtin.small_model import write_small_model
from fastdense.errors import UserError
from fastdense.files import atomic_directory, check_takes_files

_ENTRIES = {"train.jsonl", "dev", "test", "model"}

__all__ = ["STANDARD_LIBRARY", "write_builtin_data"]


def write_builtin_data(output_dir: Path, sources: Sequence[str] = (STANDARD_LIBRARY,)) -> RetrievalSet:
    """Write a data set made of the documentation of ``sources``, each "stdlib" or an installed package's import name.

    ``output_dir`` then holds ``train.jsonl`` (Tevatron's raw rows), ``dev/`` and ``test/`` (each corpus.jsonl,
    queries.jsonl, qrels.txt) and ``model/`` (a small BERT with random weights and its tokenizer). dev's corpus is
    dev's passages, to be quick; test's corpus is every passage there is, training passages too. Same Python and same
    packages, same bytes.

    Raises:
        UserError: ``output_dir`` holds anything but an earlier data set, or cannot be written; a source is not
            installed or has no Python source, or is too small to be split.
    """
    _check_output_dir(Path(output_dir))
    objects = [item for source in dict.fromkeys(sources) for item in _objects(source)]
    retrieval_set = build_retrieval_set(objects)
    for split, queries in retrieval_set.queries.items():
        if not queries:
            raise UserError(f"--source {' '.join(sources)}: no docstring is left for {split}, add another --source")
    with atomic_directory(output_dir) as directory:
        _write_jsonl(directory / "train.jsonl", _training_rows(retrieval_set))
        _write_evaluation(directory / "dev", retrieval_set.queries["dev"], retrieval_set.passages["dev"])
        _write_evaluation(directory / "test", retrieval_set.queries["test"], retrieval_set.all_passages())
        write_small_model(_training_texts(retrieval_set), directory / "model")
    return retrieval_set


def _check_output_dir(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory} is a file; name a directory")
    foreign = {entry.name for entry in directory.iterdir()} - _ENTRIES if directory.is_dir() else set()
    if foreign:  # the directory is replaced, and what somebody else put there would be lost
        raise UserError(f"--output_dir {directory} holds other files ({min(foreign)}); name a new directory")
    try:
        check_takes_files(directory.absolute().parent)
    except OSError as error:
        raise UserError(f"--output_dir {directory} cannot be made: {error.strerror}") from None


def _objects(source: str) -> Iterable[DocumentedObject]:
    yield from documented_objects(source)
    if source == STANDARD_LIBRARY:
        yield from compiled_objects()
        yield from help_topics()


def _training_rows(retrieval_set: RetrievalSet) -> Iterable[dict[str, Any]]:
    """Tevatron's raw rows. Queries whose module has no other passage are left out: they lack a hard negative."""
    modules = defaultdict(list)
    for passage in retrieval_set.passages["train"]:
        modules[passage.module].append(passage)
    for query in retrieval_set.queries["train"]:
        if negatives := hard_negatives(query, modules[query.positives[0].module]):
            yield {
                "query_id": query.query_id,
                "query": query.text,
                "positive_passages": [_passage_row(passage) for passage in query.positives],
                "negative_passages": [_passage_row(passage) for passage in negatives],
            }


def _training_texts(retrieval_set: RetrievalSet) -> Iterable[str]:
    yield from (query.text for query in retrieval_set.queries["train"])
    yield from (f"{passage.title} {passage.text}" for passage in retrieval_set.passages["train"])


def _passage_row(passage: Passage) -> dict[str, str]:
    return {"docid": passage.docid, "title": passage.title, "text": passage.text}


def _write_evaluation(directory: Path, queries: Sequence[Query], corpus: Sequence[Passage]) -> None:
    directory.mkdir()
    _write_jsonl(directory / "corpus.jsonl", map(_passage_row, corpus))
    _write_jsonl(directory / "queries.jsonl", ({"query_id": query.query_id, "query": query.text} for query in queries))
    judgements = [f"{query.query_id} 0 {passage.docid} 1\n" for query in queries for passage in query.positives]
    (directory / "qrels.txt").write_text("".join(judgements), encoding="utf-8")


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
