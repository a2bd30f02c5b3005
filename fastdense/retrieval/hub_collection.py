"""Corpora, queries and judgements of the hub in NanoBEIR's layout: ``hub:zeta-alpha-ai/NanoMSMARCO``.

Such a repository has the configs corpus and queries, with ``{_id, text}``, and qrels, with ``{query-id, corpus-id}``
and perhaps a ``score``. One with a split for every collection is named with it: ``hub:org/name/NanoMSMARCO``.
"""

from collections.abc import Iterator
from typing import Any

from fastdense.data.files import Source
from fastdense.data.hub import HUB_PREFIX, hub_source, parse_dataset_name
from fastdense.data.rows import kind
from fastdense.errors import UserError


def hub_texts(name: str, cache_dir: str | None, *, is_query: bool) -> Source:
    """The queries or the passages of ``name``, which are in the cache by now.

    Raises:
        UserError: the hub has no such data set, config or split, or cannot be reached.
    """
    return _config(name, "queries" if is_query else "corpus", cache_dir)


def hub_judgements(name: str, cache_dir: str | None) -> Iterator[tuple[str, str, str, int]]:
    """(origin, query id, passage id, relevance) of every judgement; without a score it is 1.

    Raises:
        UserError: as :func:`hub_texts`; or a row is no judgement.
    """
    for origin, row in _config(name, "qrels", cache_dir).read():
        query_id, passage_id = (_text_id(row, field, origin) for field in ("query-id", "corpus-id"))
        score = row.get("score", 1)
        if isinstance(score, bool) or not isinstance(score, int | float) or score != int(score):
            raise UserError(f"{origin}: the field score is {score!r}, a whole number is expected")
        yield origin, query_id, passage_id, int(score)


def _config(name: str, config: str, cache_dir: str | None) -> Source:
    parsed = parse_dataset_name(name.removeprefix(HUB_PREFIX))
    if parsed.config is not None:
        raise UserError(f"{name}: the configs are corpus, queries and qrels; name org/name[/split]")
    return hub_source(f"{parsed.repository}/{parsed.split}:{config}", cache_dir)


def _text_id(row: dict[str, Any], field: str, origin: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{origin}: the field {field} is {kind(value)}, a string is expected")
    return str(value)
