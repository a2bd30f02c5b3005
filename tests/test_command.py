"""How commands end."""

import os
import signal
from collections.abc import Iterator

import pytest

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
