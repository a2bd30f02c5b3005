"""Files of representations: vectors with the id of each.

The ending decides the format: ``.npy`` (ids in a sibling ``.ids.txt``, one a line), ``.safetensors`` (ids inside), and
for anything else Tevatron's pickle ``(float32 array [N, d], list of N ids)``.
"""

import glob
import json
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.files import atomic_file, check_readable
from fastdense.retrieval.pickles import read_array_pickle
from fastdense.retrieval.rankings import is_rankable

IDS_ENDING = ".ids.txt"
CHECKED_BYTES = 2**26  # of vectors that are looked at at a time
SAFETENSORS_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
SHARD_NAME = re.compile(r"(?P<stem>.+)-\d{5,}-of-(?P<count>\d{5,})(?P<suffix>\.[^.]*)?", re.DOTALL)


@dataclass(frozen=True)
class Representations:
    """``vectors`` [N, D] and the ``ids`` of their N texts; ``source`` says in messages where they are from.

    ``vectors`` are of the floats that they are stored in, and may be memory-mapped; :meth:`rows` reads some of them as
    float32.
    """

    ids: list[str]
    vectors: NDArray[np.floating]
    source: str = "the representations"

    def rows(self, chosen: slice | int | NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors in float32, contiguous; a copy if they are not stored so."""
        return np.ascontiguousarray(self.vectors[chosen], dtype=np.float32)

    def blocks(self, n_bytes: int) -> list[slice]:
        """Consecutive rows, ``n_bytes`` of float32 vectors at a time and at least one row."""
        size = max(1, n_bytes // max(1, 4 * self.vectors.shape[1]))
        return [slice(start, min(start + size, len(self.ids))) for start in range(0, len(self.ids), size)]

    def check_new(self, seen: set[str]) -> None:
        """Add the ids to ``seen``, those of the other shards of a corpus; UserError if one is there already."""
        if twice := seen.intersection(self.ids):
            raise UserError(f"{self.source}: passage {min(twice)!r} is in another file of --passage_reps already")
        seen.update(self.ids)


def representation_files(pattern: str) -> list[Path]:
    """The files that the glob ``pattern`` names, sorted by name."""
    check_readable(pattern)
    if Path(pattern).is_file():
        return [Path(pattern)]  # also where its name holds a bracket
    check_readable(Path(pattern).parent)  # of an unreadable one glob would say that nothing is in it
    paths = sorted(Path(name) for name in glob.glob(pattern) if not name.endswith(IDS_ENDING))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(f"no file of representations matches {pattern!r}; give a path or a quoted glob such as 'emb/*'")
    _check_all_shards(files)
    return files


def with_ids(path: str | Path) -> list[Path]:
    """The files that representations at ``path`` are in: it, and for ``.npy`` the ids beside it."""
    path = Path(path)
    return [path, _ids_path(path)] if path.suffix == ".npy" else [path]


def files_with_ids(pattern: str) -> list[Path]:
    """The same for all files that the glob ``pattern`` names."""
    return [part for file in representation_files(pattern) for part in with_ids(file)]


def shard_paths(path: str | Path, count: int) -> list[Path]:
    """The files that stand for ``path`` when it is written as ``count`` shards: ``stem-00000-of-00012.npy`` ..."""
    path = Path(path)
    return [path.with_name(f"{path.stem}-{number:05}-of-{count:05}{path.suffix}") for number in range(count)]


def _check_all_shards(files: Sequence[Path]) -> None:
    """Refuse a part of the shards that one encoding writes: the rest of its corpus would never be found."""
    matches = [(file, SHARD_NAME.fullmatch(file.name)) for file in files]
    wholes = {(file.with_name(m["stem"] + (m["suffix"] or "")), int(m["count"])) for file, m in matches if m}
    for whole, count in sorted(wholes):
        missing = [path for path in shard_paths(whole, count) if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]} is missing ({len(missing)} of {count} shards are): let the command that began them "
                "finish, it encodes only those"
            )


def write_representations(path: str | Path, representations: Representations) -> None:
    """Write ``path`` whole or not at all, in the format of its ending."""
    path = Path(path)
    check_ids(representations.ids, str(path))
    match path.suffix:
        case ".npy":
            _write_npy(path, representations)
        case ".safetensors":
            _write_safetensors(path, representations)
        case _:
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                pickle.dump((representations.vectors, representations.ids), file, protocol=4)


def write_windows(path: str | Path, ids: list[str], windows: Iterable[NDArray[np.float32]]) -> int:
    """Write ``path`` whole or not at all from the vectors of consecutive texts, [n, D] each; returns D.

    A ``.npy`` file grows window by window, and no more of it is ever in memory; other formats are written at the end.
    """
    path = Path(path)
    check_ids(ids, str(path))
    if path.suffix != ".npy":
        vectors = np.concatenate(list(windows))
        write_representations(path, Representations(ids, vectors))
        return vectors.shape[1]
    with atomic_file(path) as temporary:
        # Not through a memory map: on a full disk that is a bus error.
        with temporary.open("wb") as file:
            width = 0
            for window in windows:
                if not width:
                    width = window.shape[1]
                    header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), width)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(window, dtype="<f4").data)
        _write_ids(path, ids)
    return width


def read_representations(path: str | Path) -> Representations:
    """Read ``path`` and check it: ids without duplicates, one finite vector each.

    Raises:
        UserError: the file is missing, damaged, or not of the format of its ending.
    """
    path = Path(path)
    check_readable(path)
    if not path.is_file():
        raise UserError(f"there is no file of representations at {path}")
    match path.suffix:
        case ".npy":
            vectors, ids = _read_npy(path)
        case ".safetensors":
            vectors, ids = _read_safetensors(path)
        case _:
            vectors, ids = _read_pickle(path)
    check_ids(ids, str(path))
    _check_shape(path, vectors, ids)
    representations = Representations(ids, vectors, str(path))
    _check_finite(representations)
    return representations


def check_ids(ids: list[str], source: str) -> None:
    """Refuse an id that occurs twice, is empty, or cannot stand in a line of a ranking."""
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        duplicate = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise UserError(f"{source}: the id {duplicate!r} occurs more than once, and every text needs its own")
    for text_id in ids:
        if not is_rankable(text_id):
            raise UserError(f"{source}: the id {text_id!r} is empty or holds a tab or a line break")


def _check_shape(path: Path, vectors: np.ndarray, ids: list[str]) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(
            f"{path}: an array of floats [texts, dimension] was expected, not {vectors.dtype} {list(vectors.shape)}"
        )
    if len(vectors) != len(ids):
        raise UserError(f"{path}: {len(vectors)} vectors but {len(ids)} ids; encode the texts again")


def _check_finite(representations: Representations) -> None:
    """In float32, which everything is computed in; block by block, so that no second array of the size is needed."""
    broken: list[int] = []
    for block in representations.blocks(CHECKED_BYTES):
        # A sum is finite only where every number is.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = representations.rows(block).sum(axis=1, dtype=np.float64)
        broken += (block.start + np.flatnonzero(~np.isfinite(sums))).tolist()
    if broken:
        first = representations.ids[broken[0]]
        raise UserError(
            f"{representations.source}: the vector of {first!r} holds NaN or infinity ({len(broken)} vectors do)"
        )


def _ids_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".npy") + IDS_ENDING)


def _write_npy(path: Path, representations: Representations) -> None:
    with atomic_file(path) as temporary:
        np.save(temporary, representations.vectors)
        _write_ids(path, representations.ids)


def _write_ids(path: Path, ids: list[str]) -> None:
    """Before the vectors appear: vectors without ids could not be told from a finished file."""
    with atomic_file(_ids_path(path)) as temporary:
        temporary.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")


def _read_npy(path: Path) -> tuple[np.ndarray, list[str]]:
    ids_path = _ids_path(path)
    check_readable(ids_path)
    if not ids_path.is_file():
        raise UserError(f"{path} needs its ids, one a line, in {ids_path}, which does not exist")
    try:
        ids = ids_path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{ids_path} is no text file in UTF-8; one id a line was expected") from None
    return _map_npy(path), ids


def _map_npy(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # a damaged header may raise anything, and numpy's advice is to unpickle the file
        raise UserError(
            f"{path} is no readable .npy file, or a damaged one: an array of floats [texts, dimension] was expected; "
            "encode the texts again"
        ) from None


def _write_safetensors(path: Path, representations: Representations) -> None:
    from safetensors.numpy import save_file

    ids = np.frombuffer(json.dumps(representations.ids, ensure_ascii=False).encode(), dtype=np.uint8)
    vectors = np.ascontiguousarray(representations.vectors)
    # The ids are a tensor of UTF-8 bytes (a JSON list): the file's metadata could not hold those of a large corpus.
    with atomic_file(path) as temporary:
        save_file({"representations": vectors, "ids": ids}, temporary)


def _read_safetensors(path: Path) -> tuple[np.ndarray, list[str]]:
    """Vectors stay in the file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks the header, places included
            if missing := {"representations", "ids"}.difference(file.keys()):
                raise UserError(f"{path} has no tensor {min(missing)!r}; 'representations' and 'ids' were expected")
            ids = json.loads(file.get_tensor("ids").tobytes())
        return _map_safetensor(path, "representations"), _as_ids(path, ids)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no readable .safetensors file of representations ({error})") from None


def _map_safetensor(path: Path, name: str) -> np.ndarray:
    """The tensor as a read-only memory map; safe_open copies what is sliced, and all of it where NumPy reads.

    The format: 8 bytes with the length of a JSON header, the header, the data; a tensor's place counts from the data.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(length))[name]
    if tensor["dtype"] not in SAFETENSORS_FLOATS:
        raise UserError(f"{path}: floats of {', '.join(SAFETENSORS_FLOATS)} were expected, not {tensor['dtype']}")
    dtype, start = SAFETENSORS_FLOATS[tensor["dtype"]], 8 + length + tensor["data_offsets"][0]
    shape = tuple(tensor["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", start, shape)


def _read_pickle(path: Path) -> tuple[np.ndarray, list[str]]:
    match read_array_pickle(path):
        case [np.ndarray() as vectors, (list() | tuple() | np.ndarray()) as ids]:
            return vectors, _as_ids(path, ids)
        case _:
            raise UserError(f"{path}: a pickle of (float array [N, d], list of N ids) was expected")


def _as_ids(path: Path, ids: object) -> list[str]:
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, list | tuple) or not all(isinstance(i, str | int) for i in ids):
        raise UserError(f"{path}: the ids were expected to be a list of strings")
    return [str(i) for i in ids]
