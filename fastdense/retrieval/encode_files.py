"""Texts to files of vectors: one file, or shards that a killed run goes on with and several processes share."""

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path

from fastdense.data.files import Source, row_files
from fastdense.data.sources import find_source
from fastdense.errors import UserError
from fastdense.files import atomic_file, leftovers_of
from fastdense.retrieval.arguments import EncodeArguments
from fastdense.retrieval.encode import WINDOW, Encode
from fastdense.retrieval.irds import irds_texts, is_irds
from fastdense.retrieval.launch import Launch
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.progress import progress_bar
from fastdense.retrieval.representations import shard_paths, with_ids, write_windows
from fastdense.retrieval.texts import Text, parse_texts, read_texts, survey_texts

Description = dict[str, str]


def check_save_path(data: EncodeArguments, model_name: str) -> None:
    """Refuse, before a model is loaded, an ``--encoded_save_path`` that cannot be written or that is read.

    Raises:
        UserError: see :func:`fastdense.retrieval.output.check_writable`; or there is no file at ``--encode_in_path``.
    """
    inputs = {
        "--encode_in_path": row_files(data.encode_in_path or ()),
        "--model_name_or_path": _model_files(model_name),
    }
    ids = with_ids(data.encoded_save_path)[1:]
    check_writable("--encoded_save_path", data.encoded_save_path, inputs, beside=ids)


def _model_files(name: str) -> list[Path]:
    """What a model directory is read from. Not all that is there: vectors may be kept beside their model."""
    names = ("*.json", "model*.safetensors", "pytorch_model*.bin", "pooler.pt")
    return [file for pattern in names for folder in ("", "*/") for file in Path(name).glob(folder + pattern)]


def find_texts(data: EncodeArguments, cache_dir: str | None) -> Source:
    """The rows to encode: of local files, of a data set of the hub or of ir_datasets."""
    if is_irds(data.dataset_name):
        return irds_texts(data.dataset_name, is_query=data.encode_is_qry)
    return find_source(data.encode_in_path, data.dataset_name, cache_dir)


def encode_to_files(encode: Encode, source: Source, data: EncodeArguments, describe: Callable[[], Description]) -> None:
    """Encode ``source`` to the file, or the shards, that ``data`` names, and say so.

    Args:
        describe: what the vectors depend on beside the texts; shards of a killed run are kept only if it is the same.

    Raises:
        UserError: a row is malformed; or see :func:`encode_shards`.
    """
    launch = Launch.of_environment()
    if data.encode_rows_per_shard is not None:
        encode_shards(encode, source, data, describe, launch)
    elif launch.world_size > 1:
        raise UserError(
            f"{launch.world_size} processes cannot write one file: give --encode_rows_per_shard, and each writes its "
            "share of the shards"
        )
    else:
        texts = read_texts(
            source,
            is_query=data.encode_is_qry,
            num_shards=data.encode_num_shard,
            shard_index=data.encode_shard_index,
        )
        with progress_bar("Encoding", len(texts)) as on_batch:
            width = _encode_file(encode, texts, Path(data.encoded_save_path), on_batch)
        print(f"{len(texts)} vectors of {width} dimensions are in {data.encoded_save_path}")


def encode_shards(
    encode: Encode, source: Source, data: EncodeArguments, describe: Callable[[], Description], launch: Launch
) -> None:
    """Encode this process's share of the shards: those with its rank as remainder, if they are not there yet.

    Each shard holds ``data.encode_rows_per_shard`` consecutive rows and appears whole or not at all. The rows are read
    twice, once to count and check them all, and no more than a shard's are in memory.

    Raises:
        UserError: a row is malformed, an id comes twice, or shards of other texts or another encoder are there.
    """
    assert data.encode_rows_per_shard is not None
    size = data.encode_rows_per_shard
    n_texts, digest = survey_texts(source, is_query=data.encode_is_qry)
    paths = shard_paths(data.encoded_save_path, -(-n_texts // size))
    _claim(Path(data.encoded_save_path), {"texts": digest, "rows_per_shard": str(size), **describe()})
    share = range(launch.rank, len(paths), launch.world_size)
    missing = [number for number in share if not paths[number].is_file()]
    total = sum(min(size, n_texts - number * size) for number in missing)
    with progress_bar("Encoding", total, shown=launch.rank == 0) as on_batch:
        for number, texts in _shards(source, size, missing, data.encode_is_qry):
            _encode_file(encode, texts, paths[number], on_batch)
    who = f"process {launch.rank}: " if launch.world_size > 1 else ""
    kept = len(share) - len(missing)
    print(f"{who}{len(missing)} of {len(paths)} shards written ({kept} were there): {paths[0]} ...", flush=True)


def _encode_file(encode: Encode, texts: Sequence[Text], path: Path, on_batch: Callable[[int], object]) -> int:
    for unfinished in leftovers_of(path):
        unfinished.unlink()  # a killed run's
    windows = (encode(texts[start : start + WINDOW], on_batch=on_batch) for start in range(0, len(texts), WINDOW))
    return write_windows(path, [text.text_id for text in texts], windows)


def _shards(source: Source, size: int, wanted: Sequence[int], is_query: bool) -> Iterator[tuple[int, list[Text]]]:
    """The wanted shards' numbers and texts, in one pass over the rows."""
    rows = source.read() if wanted else iter(())
    for number in count():
        if number > max(wanted, default=-1):
            return
        if number in wanted:
            yield number, parse_texts(islice(rows, size), is_query=is_query)
        else:
            for _ in islice(rows, size):
                pass


def _claim(path: Path, description: Mapping[str, str]) -> None:
    """Write down what the shards of ``path`` are made from; refuse to mix them with others that are there."""
    record = path.with_name(f".{path.name}.json")
    before = _read_record(record)
    if before == description:
        return
    if any(path.parent.glob(f"{glob.escape(path.stem)}-[0-9]*-of-[0-9]*{glob.escape(path.suffix)}")):
        changed = [name for name in {**before, **description} if before.get(name) != description.get(name)]
        raise UserError(
            f"shards of {path} are there that were not made with the same {', '.join(changed)}: name another "
            "--encoded_save_path, or delete them"
        )
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _read_record(record: Path) -> Description:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
