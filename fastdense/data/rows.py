"""One training row, in any of the formats people keep them in.

The format is detected from the fields a row has:

- Tevatron: ``query``, ``positive_passages`` and perhaps ``negative_passages``, lists of ``{docid?, title?, text}``
- pre-tokenized: ``query``, ``positives`` and perhaps ``negatives``, of token ids without special tokens (or of strings)
- FlagEmbedding: ``query``, ``pos`` and perhaps ``neg``, lists of strings
- flat: one of ``anchor``/``query``/``question``, then ``positive`` (or else ``answer``), and any of ``negative``,
  ``negative_1`` ...

A passage may carry a teacher's score: ``score`` beside its text in Tevatron rows, ``pos_scores`` and ``neg_scores``,
lists of numbers, in FlagEmbedding rows. Whatever is no finite number counts as absent.

An optional field that is null counts as absent (columns of a table cannot be left out); other fields are ignored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

ANCHOR_FIELDS = ("anchor", "query", "question")
NEGATIVE_FIELD = re.compile(r"negative_?(\d*)")
LARGEST_TOKEN_ID = 2**31 - 1
LARGEST_SCORE = 3e38  # of float32


class RowError(ValueError):
    """What is wrong with a row, without where it stands: the reader of the file knows that."""


class RowFormat(Enum):
    """A row format; the value is how messages call it."""

    TEVATRON = "Tevatron (positive_passages)"
    TOKENIZED = "pre-tokenized (positives)"
    FLAG_EMBEDDING = "FlagEmbedding (pos)"
    FLAT = "flat (anchor/positive)"


MARKER_FIELDS = {
    "positive_passages": RowFormat.TEVATRON,
    "positives": RowFormat.TOKENIZED,
    "pos": RowFormat.FLAG_EMBEDDING,
    "positive": RowFormat.FLAT,
}
ANSWER_FIELD = "answer"  # the positive only where no other field is: rows of the other formats may carry an answer too
NEGATIVES_FIELDS = {
    "negative_passages": RowFormat.TEVATRON,
    "negatives": RowFormat.TOKENIZED,
    "neg": RowFormat.FLAG_EMBEDDING,
}


@dataclass
class Passage:
    """A text, with a title and an id where the row has them, or token ids; and a teacher's score, if there is one."""

    text: str | None = None
    title: str | None = None
    docid: str | None = None
    ids: list[int] | None = None
    score: float | None = None


@dataclass
class Row:
    """A query (a text or token ids) with at least one positive."""

    query: str | None
    query_ids: list[int] | None
    positives: list[Passage]
    negatives: list[Passage] = field(default_factory=list)


def detect_format(row: Any) -> RowFormat:
    """The format of one parsed row; :class:`RowError` if it has none, or the fields of several."""
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind(row)}, an object with a query and its passages is expected")
    markers = [name for name in MARKER_FIELDS if row.get(name) is not None]
    markers = markers or [name for name in MARKER_FIELDS if name in row]
    formats = {MARKER_FIELDS[name] for name in markers}
    if not markers and ANSWER_FIELD in row:
        markers, formats = [ANSWER_FIELD], {RowFormat.FLAT}
    if not markers:
        raise RowError(
            "no field holds positive passages: positive_passages, positives, pos, positive or answer is expected, "
            f"the row has {', '.join(map(str, row)) or 'no fields'}"
        )
    negatives = [name for name in NEGATIVES_FIELDS if row.get(name) is not None]
    formats |= {NEGATIVES_FIELDS[name] for name in negatives}
    if len(formats) > 1:
        raise RowError(
            f"the fields {', '.join(markers + negatives)} belong to different row formats; keep those of one"
        )
    return formats.pop()


def parse_row(row: dict[str, Any], row_format: RowFormat) -> Row:
    """Read ``row`` as ``row_format``; :class:`RowError` names the first field that is missing or of a wrong type."""
    return _PARSERS[row_format](row)


def _tevatron(row: dict[str, Any]) -> Row:
    return Row(
        query=_text(row.get("query"), "query"),
        query_ids=None,
        positives=_passages(row, "positive_passages", _tevatron_passage, required=True),
        negatives=_passages(row, "negative_passages", _tevatron_passage),
    )


def _tokenized(row: dict[str, Any]) -> Row:
    query = _text_or_ids(row.get("query"), "query")
    return Row(
        query=query.text,
        query_ids=query.ids,
        positives=_passages(row, "positives", _text_or_ids, required=True),
        negatives=_passages(row, "negatives", _text_or_ids),
    )


def _flag_embedding(row: dict[str, Any]) -> Row:
    return Row(
        query=_text(row.get("query"), "query"),
        query_ids=None,
        positives=_scored(_passages(row, "pos", _text_passage, required=True), row.get("pos_scores")),
        negatives=_scored(_passages(row, "neg", _text_passage), row.get("neg_scores")),
    )


def _scored(passages: list[Passage], scores: Any) -> list[Passage]:
    """The passages with the scores that stand beside them, unless these are not one for each."""
    if isinstance(scores, list) and len(scores) == len(passages):
        for passage, score in zip(passages, scores, strict=True):
            passage.score = _score(score)
    return passages


def _score(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= LARGEST_SCORE else None


def _flat(row: dict[str, Any]) -> Row:
    anchor = _anchor_field(row)
    positive = "positive" if "positive" in row else ANSWER_FIELD
    return Row(
        query=_text(row[anchor], anchor),
        query_ids=None,
        positives=[_text_passage(row[positive], positive)],
        negatives=[_text_passage(row[name], name) for name in _negative_fields(row)],
    )


_PARSERS: dict[RowFormat, Callable[[dict[str, Any]], Row]] = {
    RowFormat.TEVATRON: _tevatron,
    RowFormat.TOKENIZED: _tokenized,
    RowFormat.FLAG_EMBEDDING: _flag_embedding,
    RowFormat.FLAT: _flat,
}


def _anchor_field(row: dict[str, Any]) -> str:
    present = [name for name in ANCHOR_FIELDS if row.get(name) is not None]
    present = present or [name for name in ANCHOR_FIELDS if name in row]
    if not present:
        raise RowError("no field holds the query: anchor, query or question is expected")
    if len(present) > 1:
        raise RowError(f"the fields {' and '.join(present)} could each be the query; keep one of them")
    return present[0]


def _negative_fields(row: dict[str, Any]) -> list[str]:
    """``negative``, then ``negative_1``, ``negative_2`` ... in numeric order, leaving out those that are null."""
    numbered = []
    for name, value in row.items():
        match = NEGATIVE_FIELD.fullmatch(name)
        if match and value is not None:
            numbered.append((int(match[1] or -1), name))
    return [name for _, name in sorted(numbered)]


def _passages(
    row: dict[str, Any], name: str, read: Callable[[Any, str], Passage], *, required: bool = False
) -> list[Passage]:
    value = row.get(name)
    if value is None and not required:
        return []
    if not isinstance(value, list):
        raise RowError(f"the field {name} is {kind(value)}, a list is expected")
    if required and not value:
        raise RowError(f"the field {name} is empty, at least one positive passage is expected")
    return [read(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _tevatron_passage(value: Any, where: str) -> Passage:
    if not isinstance(value, dict):
        raise RowError(f"the field {where} is {kind(value)}, an object with a text is expected")
    title, docid = value.get("title"), value.get("docid")
    if docid is not None and (isinstance(docid, bool) or not isinstance(docid, str | int)):
        raise RowError(f"the field {where}.docid is {kind(docid)}, a string is expected")
    return Passage(
        text=_text(value.get("text"), f"{where}.text"),
        title=None if title is None else _text(title, f"{where}.title"),
        docid=None if docid is None else _text(str(docid), f"{where}.docid"),
        score=_score(value.get("score")),
    )


def _text_passage(value: Any, where: str) -> Passage:
    return Passage(text=_text(value, where))


def _text_or_ids(value: Any, where: str) -> Passage:
    if isinstance(value, str):
        return _text_passage(value, where)
    if not isinstance(value, list):
        raise RowError(f"the field {where} is {kind(value)}, a list of token ids or a string is expected")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int):
            raise RowError(f"the field {where}[{index}] is {kind(item)}, a token id is expected")
        if not 0 <= item <= LARGEST_TOKEN_ID:
            raise RowError(f"the field {where}[{index}] is {item}, which is no token id")
    return Passage(ids=value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"the field {where} is {kind(value)}, a string is expected")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"the field {where} holds half a surrogate pair, which is no character") from None
    return value


def kind(value: Any) -> str:
    """What a parsed JSON value is, as messages call it."""
    if value is None:
        return "missing or null"
    for types, name in ((bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list")):
        if isinstance(value, types):
            return name
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
