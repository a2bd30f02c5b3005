"""What is asked about a documented object, and what answers it."""

import re
from collections.abc import Iterator
from itertools import islice

from fastdense.data.builtin.extraction import DocumentedObject

_PASSAGE_LENGTH = 800  # characters; a small encoder reads no more
_QUERY_WORDS = range(4, 41)
_INNER_SENTENCES = 3  # of one docstring

# A sentence ends before a capital, a quotation or a bracket: not after "e.g." or inside "os.path".
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")
_COMMENT = re.compile(r"(?:^[ ]*#[ ].*\n?)+", re.MULTILINE)


def query_text(item: DocumentedObject) -> str | None:
    """The summary of an object without its own name, which would give the passage away; None if it says too little."""
    summary, _ = _split_docstring(item.docstring)
    return _as_query(summary, item)


def passage_text(item: DocumentedObject) -> str:
    """All that is known of an object but its summary: signature, the docstring's rest, code."""
    _, details = _split_docstring(item.docstring)
    return _joined(item.signature, details, item.code)


def inner_queries(item: DocumentedObject) -> Iterator[tuple[str, str]]:
    """Further queries for training: a sentence of the docstring's rest, or a comment in the code, taken out of there.

    Yields each with the passage that is left without it.
    """
    yield from islice(_sentence_queries(item), _INNER_SENTENCES)
    yield from _comment_queries(item)


def _sentence_queries(item: DocumentedObject) -> Iterator[tuple[str, str]]:
    _, details = _split_docstring(item.docstring)
    paragraphs = [" ".join(paragraph.split()) for paragraph in details.split("\n\n")]
    for sentence in (sentence for paragraph in paragraphs for sentence in _SENTENCE_END.split(paragraph)):
        query = _as_query(sentence, item)
        if query and not sentence.startswith(">>>"):
            yield query, _joined(item.signature, "\n\n".join(paragraphs).replace(sentence, ""), item.code)


def _comment_queries(item: DocumentedObject) -> Iterator[tuple[str, str]]:
    _, details = _split_docstring(item.docstring)
    for comment in _COMMENT.finditer(item.code):
        query = _as_query(" ".join(line.strip(" #") for line in comment.group().splitlines()), item)
        if query:
            yield query, _joined(item.signature, details, item.code[: comment.start()] + item.code[comment.end() :])


def _split_docstring(docstring: str) -> tuple[str, str]:
    """The first sentence on one line, and the rest as it stands."""
    paragraph, _, rest = docstring.strip().partition("\n\n")
    summary, *remainder = _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
    return summary, "\n".join(part for part in (*remainder, rest.strip()) if part)


def _as_query(sentence: str, item: DocumentedObject) -> str | None:
    nameless = re.sub(rf"\b{re.escape(item.name)}\b(?:\(\))?", " ", sentence, flags=re.IGNORECASE)
    query = re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(nameless.split())).strip(" -:,;=")
    return query if len(query.split()) in _QUERY_WORDS else None


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)[:_PASSAGE_LENGTH].rstrip()
