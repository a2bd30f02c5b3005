"""Rows of a corpus or a query file, and the texts they stand for."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from fastdense.data.files import Source
from fastdense.data.rows import kind
from fastdense.errors import UserError
from fastdense.retrieval.rankings import is_rankable

ID_FIELDS = ("text_id", "docid", "query_id", "_id")


@dataclass(frozen=True, slots=True)
class Text:
    """A query or a passage: its id, and its text (a passage's perhaps with a title) or its token ids."""

    text_id: str
    text: str = ""
    title: str | None = None
    token_ids: list[int] | None = None


def read_texts(source: Source, *, is_query: bool, num_shards: int = 1, shard_index: int = 0) -> list[Text]:
    """The texts of one shard: rows ``shard_index``, ``shard_index + num_shards``, ... of ``source``.

    A row is one of ``{text_id, text}`` (the text may be a list of token ids), ``{docid, title?, text}``,
    ``{query_id, query}`` and BEIR's ``{_id, title?, text}``. Other fields are ignored, so training rows are queries.

    Raises:
        UserError: a row is none of these (with file, line and field), an id comes twice, a file of passages was given
            as queries or the other way round, or there is no row.
    """
    texts = parse_texts(islice(source.read(), shard_index, None, num_shards), is_query=is_query)
    if not texts:
        part = f"in shard {shard_index} of {num_shards}" if num_shards > 1 else "in it"
        raise UserError(f"{source.name}: there is no row {part} to encode")
    return texts


def parse_texts(rows: Iterable[tuple[str, Any]], *, is_query: bool) -> list[Text]:
    """Read parsed rows, each with its origin. Raises UserError for a row that is none, or an id that comes twice."""
    origins: dict[str, str] = {}
    texts = []
    for origin, row in rows:
        text = parse_text(row, origin, is_query=is_query)
        _note(origins, text.text_id, origin)
        texts.append(text)
    return texts


def survey_texts(source: Source, *, is_query: bool) -> tuple[int, str]:
    """How many texts ``source`` holds, and a digest of them all; in 8 bytes a text.

    Raises:
        UserError: as :func:`read_texts`.
    """
    digest = blake2b(digest_size=16)
    hashes = array("q")
    for origin, row in source.read():
        text = parse_text(row, origin, is_query=is_query)
        hashes.append(hash(text.text_id))
        digest.update(repr((text.text_id, text.title, text.text, text.token_ids)).encode())
    if not hashes:
        raise UserError(f"{source.name}: there is no row in it to encode")
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    _check_ids(source, set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()), is_query)
    return len(hashes), digest.hexdigest()


def _check_ids(source: Source, suspects: set[int], is_query: bool) -> None:
    """Refuse an id that comes twice; all that do have their hash among ``suspects``."""
    origins: dict[str, str] = {}
    for origin, row in source.read() if suspects else ():
        text_id = parse_text(row, origin, is_query=is_query).text_id
        if hash(text_id) in suspects:
            _note(origins, text_id, origin)


def _note(origins: dict[str, str], text_id: str, origin: str) -> None:
    first = origins.setdefault(text_id, origin)
    if first is not origin:
        raise UserError(f"{origin}: the id {text_id!r} is that of {first} already; every text needs its own")


def parse_text(row: Any, origin: str, *, is_query: bool) -> Text:
    """Read one parsed row; ``origin`` is where it stands, for messages. Raises UserError, see :func:`read_texts`."""
    if not isinstance(row, dict):
        raise UserError(f"{origin}: the row is {kind(row)}, an object with an id and a text is expected")
    name = next((name for name in ID_FIELDS if row.get(name) is not None), None)
    if name is None:
        raise UserError(f"{origin}: no field holds the id: one of {', '.join(ID_FIELDS)} is expected")
    _check_side(name, origin, is_query)
    text_id = _text_id(row[name], name, origin)
    if name == "query_id":
        return Text(text_id, _string(row, "query", origin))
    if isinstance(row.get("text"), list):
        return Text(text_id, token_ids=_token_ids(row["text"], origin))
    title = None if row.get("title") is None else _string(row, "title", origin)
    return Text(text_id, _string(row, "text", origin), title)


def _check_side(name: str, origin: str, is_query: bool) -> None:
    if name == "query_id" and not is_query:
        raise UserError(f"{origin}: a row with a query_id is a query; add --encode_is_qry to encode queries")
    if name == "docid" and is_query:
        raise UserError(f"{origin}: a row with a docid is a passage; leave --encode_is_qry out to encode passages")


def _text_id(value: Any, name: str, origin: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{origin}: the field {name} is {kind(value)}, a string is expected")
    text_id = str(value)
    if not is_rankable(text_id):
        raise UserError(f"{origin}: the {name} {text_id!r} is empty or holds a tab or a line break")
    return text_id


def _string(row: dict[str, Any], name: str, origin: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(f"{origin}: the field {name} is {kind(value)}, a string is expected")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{origin}: the field {name} holds half a surrogate pair, which is no character") from None
    return value


def _token_ids(value: list[Any], origin: str) -> list[int]:
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise UserError(f"{origin}: the field text[{index}] is {item!r}, a token id is expected")
    return value
