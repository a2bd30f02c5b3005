"""Files and directories that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _fsync(Path(folder, name))
        _fsync(Path(folder))


def check_takes_files(directory: str | os.PathLike[str]) -> None:
    """Make ``directory`` if need be; raise OSError unless files can be made in it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, prefix=".probe.tmp."):
        pass


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced to disk and renamed to ``path``.

    After an exception ``path`` is as it was and nothing temporary is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name's ending is kept: numpy and faiss choose or change a file's format by it.
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; on success it is synced to disk and takes ``path``'s place.

    A directory that is already at ``path`` is replaced. After an exception it is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp.", dir=path.parent))
    try:
        yield temporary
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(written: Path, path: Path) -> None:
    """Sync the finished directory ``written`` to disk and rename it to ``path`` (same file system)."""
    _fsync_tree(written)
    written.chmod(0o777 & ~_umask())  # mkdtemp made it private
    outgoing = _set_aside(path) if path.exists() else None
    os.replace(written, path)
    _fsync(path.parent)
    if outgoing is not None:
        shutil.rmtree(outgoing)


def remove_directory(path: Path) -> None:
    """Remove a directory; killed on the way, it leaves nothing under ``path`` that looks whole."""
    shutil.rmtree(_set_aside(path))


def leftovers(directory: Path) -> Iterator[Path]:
    """What killed processes left unfinished in ``directory``: the functions here would have removed it."""
    for pattern in (".*.tmp.*", ".*.old.*"):
        yield from directory.glob(pattern)


def _set_aside(path: Path) -> Path:
    """Move ``path`` into a new hidden directory beside it, by one rename."""
    outgoing = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, outgoing / path.name)
    return outgoing


def publish_files(written: Path, directory: Path) -> None:
    """Move everything in the finished directory ``written`` into ``directory``, each entry by one rename.

    For a directory that also holds other things (a run's ``output_dir`` with its checkpoints).
    """
    _fsync_tree(written)
    directory.mkdir(parents=True, exist_ok=True)
    for entry in sorted(written.iterdir()):
        target = directory / entry.name
        if entry.is_dir():
            publish_directory(entry, target)
        else:
            os.replace(entry, target)
    _fsync(directory)


def remove(path: Path) -> None:
    """Remove a file or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
