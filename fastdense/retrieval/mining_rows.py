"""Queries with their known positives, the passages of a corpus, and the training rows that mining makes of them."""

import contextlib
import gzip
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from fastdense.data.files import Source
from fastdense.data.rows import Passage, RowError, detect_format, parse_row
from fastdense.errors import UserError
from fastdense.files import atomic_file
from fastdense.retrieval.qrels import Qrels
from fastdense.retrieval.representations import Representations
from fastdense.retrieval.texts import Text, parse_text


@dataclass(frozen=True)
class JudgedQuery:
    """A query and the passages that are known to answer it, at least one."""

    query_id: str
    text: str
    positives: list[Passage]


def read_training_queries(source: Source) -> list[JudgedQuery]:
    """The queries and positives of training rows in any text format, each with the id that it is encoded with.

    Raises:
        UserError: a row is malformed, has no id or token ids instead of texts, or an id comes twice.
    """
    queries: dict[str, JudgedQuery] = {}
    for origin, raw in source.read():
        query = parse_text(raw, origin, is_query=True)  # as it was encoded
        try:
            positives = parse_row(raw, detect_format(raw)).positives
        except RowError as error:
            raise UserError(f"{origin}: {error}") from None
        if query.token_ids is not None or any(passage.text is None for passage in positives):
            raise UserError(f"{origin}: the row holds token ids; negatives are mined for rows of text")
        if query.text_id in queries:
            raise UserError(f"{origin}: the id {query.text_id!r} is that of a row above; every row needs its own")
        queries[query.text_id] = JudgedQuery(query.text_id, query.text, positives)
    if not queries:
        raise UserError(f"{source.name}: there are no rows in it, at least one is expected")
    return list(queries.values())


class Corpus:
    """The rows of a corpus, read from the start for each question, so that no more than the answer is in memory."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _read(self) -> Iterator[tuple[str, Passage]]:
        for origin, raw in self._source.read():
            text = parse_text(raw, origin, is_query=False)
            if text.token_ids is not None:
                raise UserError(f"{origin}: the passage is a list of token ids; negatives are mined from rows of text")
            yield text.text_id, Passage(text.text, text.title, text.text_id)

    def passages(self, ids: Collection[str]) -> dict[str, Passage]:
        """The passages with these ids, as far as the corpus has them."""
        return {text_id: passage for text_id, passage in self._read() if text_id in ids}

    def copies(self, passages: Iterable[Passage]) -> dict[bytes, set[str]]:
        """The ids of all passages with the text of one of ``passages``, by :func:`text_key`."""
        copies: dict[bytes, set[str]] = {text_key(passage): set() for passage in passages}
        for text_id, passage in self._read():
            key = text_key(passage)
            if key in copies:
                copies[key].add(text_id)
        return copies


def text_key(passage: Passage) -> bytes:
    """Equal for passages of the same text: white space and, where there is a text, the title do not count."""
    words = (passage.text or "").split() or (passage.title or "").split()
    return blake2b(" ".join(words).encode(), digest_size=16).digest()


def judged_queries(texts: Sequence[Text], qrels: Qrels, corpus: Corpus) -> tuple[list[JudgedQuery], int]:
    """The queries that have relevant passages in the corpus, with these, and how many others ``texts`` holds.

    Raises:
        UserError: a query is a list of token ids, or none has a relevant passage in the corpus.
    """
    relevant = {
        text.text_id: [passage for passage, relevance in qrels.get(text.text_id, {}).items() if relevance > 0]
        for text in texts
    }
    passages = corpus.passages({passage_id for ids in relevant.values() for passage_id in ids})
    judged = []
    for text in texts:
        if text.token_ids is not None:
            raise UserError(f"the query {text.text_id!r} is a list of token ids; negatives are mined for rows of text")
        if positives := [passages[i] for i in relevant[text.text_id] if i in passages]:
            judged.append(JudgedQuery(text.text_id, text.text, positives))
    if not judged:
        raise UserError("no query has a relevant passage in --corpus: it, --queries and --qrels do not belong together")
    return judged, len(texts) - len(judged)


def known_positives(queries: Sequence[JudgedQuery], corpus: Corpus) -> list[set[str]]:
    """The ids of every query's positives: by id, by text, and of all rows that ask the same."""
    copies = corpus.copies(passage for query in queries for passage in query.positives)
    by_text: dict[str, set[str]] = {}
    for query in queries:
        known = by_text.setdefault(_normal(query.text), set())
        for passage in query.positives:
            known |= copies[text_key(passage)]
            known |= {passage.docid} if passage.docid is not None else set()
    return [by_text[_normal(query.text)] for query in queries]


def _normal(text: str) -> str:
    return " ".join(text.split())


def select_queries(representations: Representations, queries: Sequence[JudgedQuery]) -> Representations:
    """The vectors of ``queries``, in their order; UserError if one has none."""
    rows = {query_id: row for row, query_id in enumerate(representations.ids)}
    missing = next((query.query_id for query in queries if query.query_id not in rows), None)
    if missing is not None:
        raise UserError(
            f"{representations.source} holds no vector of the query {missing!r}: encode the rows that are mined for"
        )
    ids = [query.query_id for query in queries]
    return Representations(ids, representations.vectors[[rows[i] for i in ids]], representations.source)


def write_rows(
    path: str | Path, queries: Sequence[JudgedQuery], negatives: Sequence[Sequence[str]], corpus: Corpus
) -> None:
    """Write Tevatron rows (``query_id``, ``query``, ``positive_passages``, ``negative_passages``) as JSON lines.

    Compressed where ``path`` ends in .gz; the same rows give the same bytes.

    Raises:
        UserError: a negative is not in the corpus.
    """
    wanted: AbstractSet[str] = {passage_id for row in negatives for passage_id in row}
    passages = corpus.passages(wanted)
    if missing := wanted - passages.keys():
        raise UserError(f"the passage {min(missing)!r} of --passage_reps is not in --corpus: give the rows encoded")
    with atomic_file(path) as temporary, _open_rows(temporary) as file:
        for query, ids in zip(queries, negatives, strict=True):
            row = {
                "query_id": query.query_id,
                "query": query.text,
                "positive_passages": [_fields(passage) for passage in query.positives],
                "negative_passages": [_fields(passages[i]) for i in ids],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _open_rows(path: Path) -> Iterator[TextIO]:
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":  # without the name and the time of writing, which it would hold
            file = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8"))


def _fields(passage: Passage) -> dict[str, Any]:
    """A passage as a Tevatron row has it, without what it lacks."""
    fields = {"docid": passage.docid, "title": passage.title, "text": passage.text}
    return {name: value for name, value in fields.items() if value is not None}
