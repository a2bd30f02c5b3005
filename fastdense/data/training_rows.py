"""From what the user names to tokenized training rows: read, checked and cached."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from fastdense.data.files import Source
from fastdense.data.rows import Row, RowError, RowFormat, detect_format, parse_row
from fastdense.data.sources import find_source
from fastdense.data.tokenization import TextRules, tokenize_rows
from fastdense.errors import UserError
from fastdense.files import atomic_file

FORMAT_VERSION = 2  # of the cached files; another version is not read
ROWS_PER_BATCH = 256

_PASSAGE = pa.struct(
    [
        ("text", pa.string()),
        ("title", pa.string()),
        ("docid", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("score", pa.float32()),
    ]
)
CHECKED_ROWS = pa.schema(
    [
        ("origin", pa.string()),
        ("query", pa.string()),
        ("query_ids", pa.list_(pa.int32())),
        ("positives", pa.list_(_PASSAGE)),
        ("negatives", pa.list_(_PASSAGE)),
    ]
)


def load_training_rows(
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    dataset_name: str = "json",
    q_max_len: int = 32,
    p_max_len: int = 128,
    passage_field_separator: str = " ",
    query_prefix: str = "",
    passage_prefix: str = "",
    num_proc: int = 12,
    cache_dir: str | None = None,
) -> datasets.Dataset:
    """Read and tokenize the training rows of ``train_dir`` or, without it, of the hub's ``dataset_name``.

    ``train_dir`` is a file, a directory or a list of them (see :func:`fastdense.data.files.read_file`); with it
    ``dataset_name`` is not looked at. ``dataset_name`` is ``org/name[/split][:config]``, split ``train`` by default.
    The rows' format is detected (:mod:`fastdense.data.rows`) and must be one for all.

    Returns one row per training row, memory-mapped, with ids WITHOUT special tokens, cut to ``q_max_len`` /
    ``p_max_len``: ``query`` list[int32], ``positives`` and ``negatives`` list[list[int32]], ``positive_ids`` and
    ``negative_ids`` list[int64] (identities of passages: equal for equal docids or, without a docid, for equal token
    ids), ``positive_scores`` and ``negative_scores`` list[float32] (a teacher's, null where the row has none),
    ``origin`` string (file and line, for messages).

    Both the checked and the tokenized rows are cached below ``cache_dir`` (by default the ``datasets`` cache), by the
    files' paths, sizes and times and by the settings: a second start reads and tokenizes nothing. Raises
    :class:`UserError` for a source that is not there and for the first row that is malformed.
    """
    rules = TextRules.of(
        tokenizer,
        q_max_len=q_max_len,
        p_max_len=p_max_len,
        separator=passage_field_separator,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )
    source = find_source(train_dir, dataset_name, cache_dir)
    folder = _cache_folder(source, cache_dir)
    path = folder / "rows.arrow"
    if not path.exists():
        _write_checked_rows(source, path)
    rows = datasets.Dataset.from_file(str(path))
    return tokenize_rows(rows, tokenizer, rules, folder=folder, num_proc=num_proc)


def checked_rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Yield ``(origin, row)`` for all rows of ``source``; :class:`UserError` at the first that is malformed."""
    first_format: RowFormat | None = None
    for origin, row in source.read():
        try:
            row_format = detect_format(row)
            first_format = first_format or row_format
            if row_format is not first_format:
                raise RowError(
                    f"the row's format is {row_format.value}, that of the rows before it is {first_format.value}; "
                    "give one format of rows at a time"
                )
            yield origin, parse_row(row, row_format)
        except RowError as error:
            raise UserError(f"{origin}: {error}") from error
    if first_format is None:
        raise UserError(f"{source.name}: there are no rows in it, at least one is expected")


def _write_checked_rows(source: Source, path: Path) -> None:
    with (
        atomic_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, CHECKED_ROWS) as writer,
        datasets.utils.tqdm(desc=f"Reading {source.name}", unit=" rows") as progress,
    ):
        for batch in _batches(checked_rows(source)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=CHECKED_ROWS))
            progress.update(len(batch))


def _batches(rows: Iterator[tuple[str, Row]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for origin, row in rows:
        batch.append(row_columns(origin, row))
        if len(batch) == ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def row_columns(origin: str, row: Row) -> dict[str, Any]:
    """A checked row as :data:`CHECKED_ROWS` has it."""
    passages = {"positives": [vars(p) for p in row.positives], "negatives": [vars(p) for p in row.negatives]}
    return {"origin": origin, **vars(row), **passages}


def _cache_folder(source: Source, cache_dir: str | None) -> Path:
    """Where the rows of ``source``, as it is now, are cached; made if need be."""
    digest = hashlib.blake2b(json.dumps([FORMAT_VERSION, source.identity]).encode(), digest_size=16).hexdigest()
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "fastdense" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache for training rows cannot be made at {folder} ({error.strerror}); name another directory with "
            "--data_cache_dir"
        ) from error
    return folder
