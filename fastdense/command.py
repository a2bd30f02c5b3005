"""How every command ends: exit status 0, or one sentence and exit status 2."""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from fastdense.errors import UserError

_ENDINGS = {signal.SIGTERM: ("terminated", 143), signal.SIGINT: ("interrupted", 130)}  # last line, exit status
# What the machine refuses a user, and what to do about it; any other fault of a file is named without advice.
_ADVICE = {
    errno.EACCES: "let this user read or write it, or name another place",
    errno.EPERM: "let this user read or write it, or name another place",
    errno.EROFS: "name another place",
    errno.ENOSPC: "make room and start the command again",
    errno.EDQUOT: "make room and start the command again",
}
_came: list[int] = []  # the signals that asked us to end


def _end(number: int, _: object) -> NoReturn:
    """What is unfinished is cleaned up on the way out. Worker processes forked from us end quietly."""
    _came.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(_ENDINGS[signal.Signals(number)][1])


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main``; a :class:`UserError` becomes one line on stderr and exit status 2.

    So does what the system refuses about a file: no permission, no room, a directory where a file was meant. Any other
    exception is a defect or a fault of the machine, and keeps its traceback.
    """
    for number in _ENDINGS:
        signal.signal(number, _end)
    try:
        main()
    except BaseException as error:
        status = _last_words(error)
        if status is None:
            raise
        sys.exit(status)
    sys.exit(0)


def _last_words(error: BaseException) -> int | None:
    """Say how the command ends and return its exit status; None for what keeps its traceback."""
    if _came:  # whatever it became on its way: C++ code that calls Python turns it into errors of its own
        line, status = _ENDINGS[signal.Signals(_came[0])]
    elif isinstance(error, UserError):
        line, status = f"error: {error}", 2
    elif isinstance(error, BrokenPipeError):  # the reader (`| head`) went away; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    elif isinstance(error, OSError) and (sentence := _refusal(error)):
        line, status = f"error: {sentence}", 2
    else:
        return None
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    return status


def _refusal(error: OSError) -> str | None:
    """What the system refused about which file, if it says so; None for connections and the like."""
    name = error.filename if error.filename2 is None else error.filename2  # of a renaming, where to
    if error.strerror is None or (name is None and error.errno not in _ADVICE):
        return None
    reason = error.strerror[:1].lower() + error.strerror[1:]
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {advice}" if advice else "")


class CommandParser(argparse.ArgumentParser):
    """``argparse`` without abbreviations; a mistake is a :class:`UserError` and not a page of usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def show_log(process_index: int = 0) -> None:
    """Print what the package logs, as plain sentences on stderr; ranks other than the first only print warnings."""
    logger = logging.getLogger("fastdense")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]  # anew for every command: stderr may be another one by now
    logger.setLevel(logging.INFO if process_index == 0 else logging.WARNING)
    logger.propagate = False
