"""How commands end."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from locked import locked

from fastdense import command
from fastdense.errors import UserError


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    command._came.clear()


def fails() -> None:
    raise UserError("the flag is wrong")


def is_interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def is_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def is_terminated_inside_foreign_code() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise RuntimeError("a callback failed") from error


@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        (lambda: None, 0, ""),
        (fails, 2, "error: the flag is wrong\n"),
        (is_interrupted, 130, "interrupted\n"),
        (is_terminated, 143, "terminated\n"),
        (is_terminated_inside_foreign_code, 143, "terminated\n"),
    ],
)
def test_exit_status_and_last_line(main, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.run(main)
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 // 0)


@pytest.mark.parametrize(
    "error",
    [OSError("a library's own words"), OSError(errno.EBADF, "Bad file descriptor"), ConnectionResetError(104, "reset")],
    ids=str,
)
def test_a_fault_that_names_no_file_keeps_its_traceback(error: OSError) -> None:
    with pytest.raises(type(error)):
        command.run(lambda: raise_(error))


def test_a_fault_without_the_systems_words_keeps_its_traceback() -> None:
    """Libraries' own kinds of OSError may name a file, too."""
    error = OSError("a library's own words")
    error.filename = "file"
    with pytest.raises(OSError, match="file") as caught:
        command.run(lambda: raise_(error))
    assert caught.value is error


def raise_(error: OSError) -> None:
    raise error


def end_of(main, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        command.run(main)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_what_the_system_refuses_about_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    advice = "let this user read or write it, or name another place"
    with locked(tmp_path / "file"):
        assert end_of((tmp_path / "file").read_text, capsys) == f"error: {tmp_path}/file: permission denied; {advice}\n"
    assert end_of(tmp_path.read_text, capsys) == f"error: {tmp_path}: is a directory\n"
    below = tmp_path / "file" / "x"
    assert end_of(below.read_text, capsys) == f"error: {below}: not a directory\n"
    assert end_of(lambda: (tmp_path / "file").rename(below), capsys) == f"error: {below}: not a directory\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written to an open file fails without its name."""
    sentence = os.strerror(number)
    lower = sentence[0].lower() + sentence[1:]
    line = end_of(lambda: raise_(OSError(number, sentence)), capsys)
    assert line == f"error: {lower}; make room and start the command again\n"
