"""Files and directories that appear whole or not at all, and whether what a user names may be read."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastdense.errors import UserError

# Names that nobody else makes: what bears one is swept away without asking. The last part is tempfile's.
_OURS = ".fastdense."
_UNFINISHED = re.compile(rf"{re.escape(_OURS)}(\d+\.tmp\..+|.+\.(tmp|old)\.[a-z0-9_]{{8}})", re.DOTALL)


def check_reachable(path: str | os.PathLike[str]) -> None:
    """Raise UserError if a directory on the way forbids to see whether there is anything at ``path``."""
    with _as_user_error(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise UserError if there is something at ``path`` that may not be read, or may not even be looked for.

    A directory's entries must be readable by name and by what they are. Where there is nothing, nothing is said: who
    needs it knows what was expected.
    """
    with _as_user_error(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
            os.stat(os.path.join(path, "."))
        elif stat.S_ISREG(mode):  # a pipe's writer would take opening and closing for the end
            os.close(os.open(path, os.O_RDONLY))


@contextlib.contextmanager
def _as_user_error(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise UserError(
            f"{os.fspath(path)} cannot be read: permission denied; let this user read it, or name another"
        ) from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(path: Path, mode: int = 0o666) -> None:
    """Sync a finished file or directory to disk, readable for whom the umask lets read.

    safetensors and tempfile make theirs private, whatever the umask says.
    """
    present = stat.S_IMODE(path.stat().st_mode)
    wanted = present | mode & ~_umask()
    if wanted != present and not path.is_symlink():
        with contextlib.suppress(OSError):  # a file system without modes: no reason to lose what was written
            path.chmod(wanted)
    _fsync(path)


def _settle_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _settle(Path(folder, name))
        _settle(Path(folder), 0o777)


def check_takes_files(directory: str | os.PathLike[str]) -> None:
    """Make ``directory`` if need be; raise OSError unless files can be made in it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, prefix=f"{_OURS}probe.tmp."):
        pass


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced to disk and renamed to ``path``.

    After an exception ``path`` is as it was and nothing temporary is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name's ending is kept: numpy and faiss choose or change a file's format by it.
    temporary = path.with_name(f"{_OURS}{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        _settle(temporary)
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
    temporary = Path(tempfile.mkdtemp(prefix=f"{_OURS}{path.name}.tmp.", dir=path.parent))
    try:
        yield temporary
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(written: Path, path: Path) -> None:
    """Sync the finished directory ``written`` to disk and rename it to ``path`` (same file system)."""
    _settle_tree(written)
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
    yield from (path for path in directory.glob(f"{_OURS}*") if _UNFINISHED.fullmatch(path.name))


def leftovers_of(path: Path) -> Iterator[Path]:
    """Of these the files that would have become ``path``."""
    name = re.compile(rf"{re.escape(_OURS)}\d+\.tmp\.{re.escape(path.name)}")
    yield from (found for found in leftovers(path.parent) if name.fullmatch(found.name))


def _set_aside(path: Path) -> Path:
    """Move ``path`` into a new hidden directory beside it, by one rename."""
    outgoing = Path(tempfile.mkdtemp(prefix=f"{_OURS}{path.name}.old.", dir=path.parent))
    os.replace(path, outgoing / path.name)
    return outgoing


def publish_files(written: Path, directory: Path) -> None:
    """Move everything in the finished directory ``written`` into ``directory``, each entry by one rename.

    For a directory that also holds other things (a run's ``output_dir`` with its checkpoints).
    """
    _settle_tree(written)
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
