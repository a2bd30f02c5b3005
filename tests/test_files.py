"""Files that appear whole, for whom the umask lets read; what is swept away; and what may not be read."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from locked import locked

from fastdense.errors import UserError
from fastdense.files import (
    atomic_directory,
    atomic_file,
    check_reachable,
    check_readable,
    leftovers,
    leftovers_of,
    publish_files,
    remove_directory,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o007, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_privately(path: Path) -> None:
    """As safetensors writes."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def test_what_is_written_is_as_readable_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        write_privately(temporary)
    with atomic_directory(tmp_path / "directory") as temporary:
        (temporary / "folder").mkdir(mode=0o700)
        write_privately(temporary / "folder" / "file")
    (tmp_path / "written" / "folder").mkdir(parents=True)
    write_privately(tmp_path / "written" / "file")
    write_privately(tmp_path / "written" / "folder" / "file")
    publish_files(tmp_path / "written", tmp_path / "output")
    files = ("file", "directory/folder/file", "output/file", "output/folder/file")
    assert {mode(tmp_path / name) for name in files} == {0o666 & ~umask}
    assert {mode(tmp_path / name) for name in ("directory", "directory/folder", "output/folder")} == {0o777 & ~umask}


def die(*_: object) -> None:
    raise KeyboardInterrupt


def test_leftovers_are_what_was_begun_here_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = [".notes.old.txt", ".a.tmp.b", ".77.tmp.x", ".fastdense.txt", ".fastdense.notes.old.txt", "x.tmp.y"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    (tmp_path / "old").mkdir()
    # As if killed before the renaming: nothing is cleaned up.
    monkeypatch.setattr(os, "replace", die)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    begun = []
    for name in ("model.npy", "other.npy"):
        with contextlib.suppress(KeyboardInterrupt), atomic_file(tmp_path / name) as temporary:
            temporary.touch()
            begun.append(temporary)
    with contextlib.suppress(KeyboardInterrupt), atomic_directory(tmp_path / "new") as temporary:
        begun.append(temporary)
    with pytest.raises(KeyboardInterrupt):
        remove_directory(tmp_path / "old")
    found = set(leftovers(tmp_path))
    assert found == {*tmp_path.iterdir()} - {tmp_path / name for name in [*foreign, "old"]}
    assert len(found) == 4  # the last is what the removed directory was to be moved into
    assert set(begun) < found
    assert list(leftovers_of(tmp_path / "model.npy")) == begun[:1]


def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("a")
    for path in (tmp_path / "none", tmp_path / "folder" / "file" / "none", tmp_path / "folder", tmp_path):
        check_readable(path)  # nothing to say
    cases = [("folder", 0), ("folder", 0o400), ("folder", 0o100), ("folder/file", 0), ("folder/file", 0o200)]
    for name, forbidding in cases:
        with locked(tmp_path / name, forbidding), pytest.raises(UserError) as error:
            check_readable(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name} cannot be read: permission denied; ")
    for check in (check_readable, check_reachable):
        with locked(tmp_path / "folder"), pytest.raises(UserError, match="folder/none cannot be read: permission"):
            check(tmp_path / "folder" / "none")
    with locked(tmp_path / "folder", 0o100):
        check_reachable(tmp_path / "folder" / "none")


def test_looking_does_not_end_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_readable(tmp_path / "pipe")  # opened, it would wait for a writer
