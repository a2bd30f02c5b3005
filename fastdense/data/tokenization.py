"""Text to token ids: without special tokens for the rows that are kept, with them for the model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import transformers
from transformers import PreTrainedTokenizerBase

from fastdense.errors import UserError

ROWS_PER_TASK = 100  # a row may bring a hundred passages; a batch of them must fit into memory once per process
ROWS_PER_PROCESS = 1000  # fewer are tokenized faster than a process starts

TOKENIZED_ROWS = pa.schema(
    [
        ("query", pa.list_(pa.int32())),
        ("positives", pa.list_(pa.list_(pa.int32()))),
        ("negatives", pa.list_(pa.list_(pa.int32()))),
        ("positive_ids", pa.list_(pa.int64())),
        ("negative_ids", pa.list_(pa.int64())),
        ("positive_scores", pa.list_(pa.float32())),
        ("negative_scores", pa.list_(pa.float32())),
        ("origin", pa.string()),
    ]
)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids a tokenizer puts around one text, for instance ``[CLS]`` and ``[SEP]``."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Find them by tokenizing a short text with and without; a tokenizer that adds none has none."""
        for probe in ("text", "a", "0"):
            bare = token_ids(tokenizer, [probe])[0]
            framed = list(tokenizer(probe, add_special_tokens=True, verbose=False)["input_ids"])
            for start in range(len(framed) - len(bare) + 1):
                if bare and framed[start : start + len(bare)] == bare:
                    return cls(tuple(framed[:start]), tuple(framed[start + len(bare) :]))
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} tokenizes a text differently with and "
            "without special tokens, so they cannot be added to token ids; name another with --tokenizer_name"
        )

    def frame(self, ids: Sequence[int], max_length: int) -> list[int]:
        """Prefix + the first ids + suffix, ``max_length`` ids in all at most."""
        return [*self.prefix, *ids[: max_length - len(self.prefix) - len(self.suffix)], *self.suffix]

    def check_length(self, max_length: int, flag: str) -> None:
        """Raise :class:`UserError` naming ``flag`` if ``max_length`` leaves no room for a token of the text."""
        count = len(self.prefix) + len(self.suffix)
        if max_length <= count:
            raise UserError(
                f"--{flag} is {max_length}, but the tokenizer adds {count} special tokens to every text; "
                f"at least {count + 1} is expected"
            )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, all of them, without special tokens."""
    if not texts:
        return []
    encoding = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # longer than the model's positions is no news: the ids are cut afterwards
    )
    return encoding["input_ids"]


def resolve_separator(tokenizer: PreTrainedTokenizerBase, separator: str) -> str:
    """``separator`` itself, or what it names on the tokenizer: ``sep_token`` stands for ``[SEP]`` with BERT."""
    named = getattr(tokenizer, separator, separator)
    if named is None:
        raise UserError(
            f"--passage_field_separator names the tokenizer's {separator}, which has none; give the text itself"
        )
    return named if isinstance(named, str) else separator


def passage_text(title: str | None, text: str, separator: str) -> str:
    """``title + separator + text``, or the text alone where there is no title (None).

    An empty title counts as a title, as in Tevatron v1: the separator is there.
    """
    return text if title is None else title + separator + text


def passage_identity(docid: str | None, ids: Sequence[int]) -> int:
    """A stable signed 64-bit hash of the docid or, without one, of the token ids."""
    content = f"docid:{docid}" if docid is not None else "ids:" + ",".join(map(str, ids))
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class TextRules:
    """How texts become token ids, apart from the tokenizer."""

    q_max_len: int
    p_max_len: int
    separator: str
    query_prefix: str
    passage_prefix: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, separator: str, **settings: Any) -> "TextRules":
        """Check the lengths against the tokenizer and resolve ``separator`` (:func:`resolve_separator`)."""
        rules = cls(separator=resolve_separator(tokenizer, separator), **settings)
        special_tokens = SpecialTokens.of(tokenizer)
        special_tokens.check_length(rules.q_max_len, "q_max_len")
        special_tokens.check_length(rules.p_max_len, "p_max_len")
        return rules


def tokenize_rows(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, rules: TextRules, *, folder: Path, num_proc: int
) -> datasets.Dataset:
    """Tokenize checked rows in up to ``num_proc`` processes into :data:`TOKENIZED_ROWS`, cached in ``folder``.

    No more processes are started than there are thousands of rows.
    """
    fingerprint = _fingerprint(tokenizer, rules)
    processes = min(num_proc, len(rows) // ROWS_PER_PROCESS + 1)
    return rows.map(
        RowTokenizer(tokenizer, rules),
        batched=True,
        batch_size=ROWS_PER_TASK,
        remove_columns=rows.column_names,
        features=datasets.Features.from_arrow_schema(TOKENIZED_ROWS),
        num_proc=processes if processes > 1 else None,
        cache_file_name=str(folder / f"tokenized-{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        load_from_cache_file=True,
        desc="Tokenizing rows",
    )


class RowTokenizer:
    """Turns a batch of checked rows into tokenized rows; called by ``datasets.map`` in worker processes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: TextRules) -> None:
        self.tokenizer = tokenizer
        self.rules = rules
        self.vocabulary_size = len(tokenizer)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        queries = [{"text": text, "ids": ids} for text, ids in zip(batch["query"], batch["query_ids"], strict=True)]
        self._check_prefix("query", self.rules.query_prefix, batch["origin"], [[query] for query in queries])
        columns = {
            "origin": batch["origin"],
            "query": self._tokenize(queries, self.rules.query_prefix, self.rules.q_max_len),
        }
        for name in ("positives", "negatives"):
            self._check_prefix("passage", self.rules.passage_prefix, batch["origin"], batch[name])
            passages = [passage for row in batch[name] for passage in row]
            tokenized = self._tokenize(passages, self.rules.passage_prefix, self.rules.p_max_len)
            docids = [passage["docid"] for passage in passages]
            identities = [passage_identity(d, ids) for d, ids in zip(docids, tokenized, strict=True)]
            lengths = [len(row) for row in batch[name]]
            columns[name] = _split(tokenized, lengths)
            columns[f"{name[:-1]}_ids"] = _split(identities, lengths)
            columns[f"{name[:-1]}_scores"] = _split([passage["score"] for passage in passages], lengths)
        self._check(columns)
        return columns

    def _check_prefix(self, side: str, prefix: str, origins: list[str], rows: list[list[dict[str, Any]]]) -> None:
        """Raise :class:`UserError` for the first row that has token ids where ``prefix`` belongs."""
        for origin, items in zip(origins, rows, strict=True):
            if prefix and any(item["ids"] is not None for item in items):
                raise UserError(
                    f"{origin}: the {side} prefix {prefix!r} cannot be put before token ids: pass an empty one with "
                    f"--{side}_prefix (of one of several sources: --source_{side}_prefix), or give the row as text"
                )

    def _tokenize(self, items: list[dict[str, Any]], prefix: str, max_length: int) -> list[list[int]]:
        """Token ids of queries or passages: their own, or those of their text behind ``prefix``."""
        texts = [self._text(item, prefix) for item in items if item["ids"] is None]
        tokenized = iter(token_ids(self.tokenizer, texts))
        return [(next(tokenized) if item["ids"] is None else item["ids"])[:max_length] for item in items]

    def _text(self, item: dict[str, Any], prefix: str) -> str:
        return prefix + passage_text(item.get("title"), item["text"], self.rules.separator)

    def _check(self, columns: dict[str, list[Any]]) -> None:
        """Raise :class:`UserError` for a text without any token and for an id the tokenizer does not have."""
        for index, origin in enumerate(columns["origin"]):
            for field, ids in _token_fields({name: column[index] for name, column in columns.items()}):
                if not ids:
                    raise UserError(f"{origin}: {field} is empty: it has no token; remove it or fill it in")
                if max(ids) >= self.vocabulary_size:
                    raise UserError(
                        f"{origin}: {field} holds the token id {max(ids)}, but the tokenizer has only "
                        f"{self.vocabulary_size} tokens; tokenize the rows with the tokenizer that trains"
                    )


def _token_fields(row: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    yield "the query", row["query"]
    for index, ids in enumerate(row["positives"]):
        yield f"positive passage {index + 1}", ids
    for index, ids in enumerate(row["negatives"]):
        yield f"negative passage {index + 1}", ids


def _split(items: list[Any], lengths: list[int]) -> list[list[Any]]:
    iterator = iter(items)
    return [[next(iterator) for _ in range(length)] for length in lengths]


def _fingerprint(tokenizer: PreTrainedTokenizerBase, rules: TextRules) -> str:
    """What tokenized rows depend on beside the rows.

    ``datasets`` would pickle and hash the tokenizer, whose state changes with its first use: its cache would miss.
    """
    settings = [transformers.__version__, _tokenizer_identity(tokenizer), asdict(rules)]
    return hashlib.blake2b(json.dumps(settings, default=str).encode(), digest_size=16).hexdigest()


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        return {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs]
