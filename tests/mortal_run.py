"""Commands that can be killed: processes forked from one that has imported everything already."""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from fastdense.command import run

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fastdense.training.run", "fastdense.training.curve"])


@dataclass(frozen=True)
class Death:
    """The process kills itself in the ``count``-th call of ``function`` (``module:name.name``) whose arguments hold
    the text ``about``.

    ``moment`` is before, midway or after; midway a file that the call writes is cut in half, and of a directory that it
    removes one file is gone.
    """

    function: str
    count: int = 1
    moment: str = "before"
    about: str = ""


def start(
    arguments: Sequence[object],
    *,
    log: Path,
    environment: dict[str, str] | None = None,
    death: Death | None = None,
    command: str = "train",
) -> ForkServerProcess:
    """Start ``python -m fastdense.COMMAND`` with ``arguments``; what it prints goes to the file ``log``."""
    words = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(command, words, log, environment or {}, death))
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 120) -> int:
    """The exit status of ``process``; it is killed and the test fails if it does not come in time."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process has not ended within {seconds} s")
    return process.exitcode


def _run(command: str, words: list[str], log: Path, environment: dict[str, str], death: Death | None) -> None:
    gc.freeze()  # what was imported before the fork stays: the collector would walk it, and copy its pages
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ.update(environment)
    if death is not None:
        _arm(death)
    main = importlib.import_module(f"fastdense.{command}").main
    run(lambda: main(words))


def _arm(death: Death) -> None:
    module, names = death.function.split(":")
    *path, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def mortal(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += death.about in str(arguments)
        if calls < death.count:
            return original(*arguments, **keywords)
        if death.moment == "midway" and name == "rmtree":
            next(path for path in Path(arguments[0]).rglob("*.safetensors")).unlink()
        elif death.moment != "before":
            original(*arguments, **keywords)
            if death.moment == "midway":
                file = next(Path(value) for value in arguments if isinstance(value, str | os.PathLike))
                os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, mortal)
