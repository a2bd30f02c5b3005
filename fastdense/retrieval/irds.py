"""Corpora, queries and judgements that the ir_datasets package knows, by its ids: ``irds:beir/scifact/test``."""

import difflib
from collections.abc import Iterator
from typing import Any

from fastdense.data.files import Source
from fastdense.data.sources import IRDS_PREFIX
from fastdense.errors import UserError
from fastdense.modeling.reason import reason


def is_irds(name: str) -> bool:
    """Whether ``name`` is an id of ir_datasets rather than a path or a name on the hub."""
    return name.startswith(IRDS_PREFIX)


def irds_texts(name: str, *, is_query: bool) -> Source:
    """The queries or the passages of ``name``, as rows; they are downloaded when they are first read.

    A text is what ir_datasets calls the default text. Where that is title and text with a space between, the title
    stays apart, so that ``--passage_field_separator`` stands between them.

    Raises:
        UserError: ir_datasets is not installed, does not know the id, or has no such part of it; while reading, that a
            part cannot be downloaded or has no text.
    """
    what, entity, row = ("query", "queries", _query) if is_query else ("document", "docs", _passage)
    items = _part(name, entity)

    def read() -> Iterator[tuple[str, Any]]:
        for number, item in enumerate(items(), start=1):
            origin = f"{name}, {what} {number}"
            if not hasattr(item, "default_text"):
                raise UserError(f"{origin}: ir_datasets has no text for a {type(item).__name__}: use another data set")
            yield origin, row(item)

    return Source(name, [name], read)


def irds_judgements(name: str) -> Iterator[tuple[str, str, int]]:
    """(query id, passage id, relevance) of every judgement of ``name``; raises as :func:`irds_texts`."""
    for item in _part(name, "qrels")():
        if not isinstance(getattr(item, "relevance", None), int):
            raise UserError(f"{name}: its judgements are no relevances of passages: use another data set")
        yield item.query_id, item.doc_id, item.relevance


def _query(item: Any) -> dict[str, str]:
    return {"query_id": item.query_id, "query": item.default_text()}


def _passage(item: Any) -> dict[str, str]:
    whole = item.default_text()
    title, text = getattr(item, "title", None), getattr(item, "text", None)
    if whole == f"{title} {text}":
        return {"docid": item.doc_id, "title": title, "text": text}
    return {"docid": item.doc_id, "text": whole}


def _part(name: str, entity: str) -> Any:
    """A function that iterates over the docs, queries or qrels of ``name``."""
    dataset = _load(name)
    if not dataset.has(entity):
        has = [kind for kind in ("docs", "queries", "qrels") if dataset.has(kind)]
        raise UserError(f"{name} has no {entity} (only {', '.join(has) or 'other things'}): name another id")

    def items() -> Iterator[Any]:
        try:
            yield from getattr(dataset, f"{entity}_iter")()
        except UserError:
            raise
        except Exception as error:  # of a dozen classes: no network, a refused download, a damaged file ...
            raise UserError(f"{name}: ir_datasets cannot read its {entity}: {reason(error)}") from error

    return items


def _load(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise UserError(f"{name} needs ir_datasets ({error}): pip install 'fastdense[ir-datasets]'") from None
    own = name.removeprefix(IRDS_PREFIX)
    try:
        return ir_datasets.load(own)
    except KeyError:
        close = difflib.get_close_matches(own, list(ir_datasets.registry), n=1)
        advice = f"did you mean {IRDS_PREFIX}{close[0]}?" if close else "https://ir-datasets.com lists them"
        raise UserError(f"{name}: ir_datasets knows no such id: {advice}") from None
