"""Commands that can be killed."""

import importlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import forked


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
    first = None if death is None else partial(_arm, death)
    return forked.start(["-m", f"fastdense.{command}", *arguments], log=log, environment=environment, first=first)


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
