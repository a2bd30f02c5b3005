"""Vectors for other programs: a faiss index, or an Arrow table."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.files import atomic_file
from fastdense.retrieval.nearest import import_faiss
from fastdense.retrieval.representations import IDS_ENDING, Representations, read_representations

BLOCK_BYTES = 2**26  # of vectors at a time
FLAT = "Flat"


def export_table(path: str | Path, files: Sequence[Path], on_shard: Callable[[int], object]) -> int:
    """Write ``id`` (string) and ``vector`` (fixed-size list of float32) of all ``files``; returns the number of rows.

    ``.parquet``, or for another ending an Arrow IPC file. In memory are all ids, for the check that none comes twice,
    and a few times :data:`BLOCK_BYTES`.

    Raises:
        UserError: a file is damaged, its vectors have another width than the first's, or an id comes twice.
    """
    rows = 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_file(path))
        writer: Any = None
        for shard in _shards(files, on_shard):
            width = shard.vectors.shape[1]
            if writer is None:
                writer = stack.enter_context(_table_writer(temporary, width))
            for block in shard.blocks(BLOCK_BYTES):
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(shard.rows(block).reshape(-1)), width)
                writer.write_table(pa.Table.from_arrays([pa.array(shard.ids[block]), vectors], schema=_schema(width)))
            rows += len(shard.ids)
    return rows


def export_index(
    path: str | Path, files: Sequence[Path], factory: str, train_rows: int, on_shard: Callable[[int], object]
) -> int:
    """Write a faiss index of all ``files`` by inner product; returns the number of vectors.

    Number i of the index is line i of the ids beside it (``path`` + ``.ids.txt``). The index is built in memory.

    Args:
        factory: faiss's description of the index (``Flat``, ``HNSW32``, ``IVF4096,PQ96``).
        train_rows: vectors, evenly spread, that it is trained on if it needs to be.

    Raises:
        UserError: see :func:`export_table`; or faiss refuses the description or the number of vectors.
    """
    faiss = import_faiss()
    path = Path(path)
    index: Any = None
    ids: list[str] = []
    try:
        for shard in _shards(files, on_shard):
            if index is None:
                index = faiss.index_factory(shard.vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
                if not index.is_trained:
                    index.train(_sample(files, train_rows))
            for block in shard.blocks(BLOCK_BYTES):
                index.add(shard.rows(block))
            ids += shard.ids
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        reason = re.sub(r"^Error in .*? at \S+:\d+: (Error: '.*?' failed: )?", "", reason)  # where in its source
        raise UserError(f"--faiss_factory {factory}: faiss refuses it ({reason})") from None
    with atomic_file(path) as temporary:
        faiss.write_index(index, str(temporary))
        with atomic_file(index_ids(path)) as lines:
            lines.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return len(ids)


def index_ids(path: str | Path) -> Path:
    """The file of ids beside an index at ``path``."""
    return Path(f"{path}{IDS_ENDING}")


def _shards(files: Sequence[Path], on_shard: Callable[[int], object]) -> Iterator[Representations]:
    seen: set[str] = set()
    first_width: int | None = None
    for file in files:
        shard = read_representations(file)
        width = shard.vectors.shape[1]
        first_width = first_width or width
        if width != first_width:
            raise UserError(
                f"{file}: the vectors have {width} dimensions, those of {files[0]} {first_width}: encode all with one "
                "model"
            )
        shard.check_new(seen)
        yield shard
        on_shard(1)
        del shard  # before the next is read


def _sample(files: Sequence[Path], rows: int) -> NDArray[np.float32]:
    counts = [len(read_representations(file).ids) for file in files]
    chosen = np.linspace(0, sum(counts) - 1, min(rows, sum(counts))).astype(np.int64)
    samples, start = [], 0
    for file, count in zip(files, counts, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + count)] - start
        samples.append(read_representations(file).rows(own))
        start += count
    return np.concatenate(samples)


def _schema(width: int) -> pa.Schema:
    return pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])


def _table_writer(path: Path, width: int) -> Any:
    if path.suffix == ".parquet":
        return pq.ParquetWriter(path, _schema(width), use_dictionary=False)  # neither ids nor vectors repeat
    return pa.ipc.new_file(path, _schema(width))
