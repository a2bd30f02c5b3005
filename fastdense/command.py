"""How every command ends: exit status 0, or one sentence and exit status 2."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from fastdense.errors import UserError


class _Terminated(SystemExit):
    """SIGTERM came: what is unfinished is cleaned up on the way out. Worker processes forked from us end quietly."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated(143)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main``; a :class:`UserError` becomes one line on stderr and exit status 2.

    Any other exception is a defect or a fault of the machine, and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader (`| head`) went away; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except _Terminated:
        print("terminated", file=sys.stderr, flush=True)
        sys.exit(143)
    sys.exit(0)


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
