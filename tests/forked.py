"""Python programs in processes forked from one that has imported already what takes seconds to import.

For tests that need a process of their own but not a fresh interpreter: ranks, programs that die, settings of the native
code. What a library reads from the environment when it is imported cannot be set here.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fastdense.training.run", "fastdense.training.curve"])


def start(
    arguments: Sequence[object],
    *,
    log: Path,
    environment: dict[str, str] | None = None,
    first: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start ``python ARGUMENTS``: ``-m MODULE``, ``-c CODE`` or a script. What it prints goes to the file ``log``.

    ``environment`` is added to this process's; ``first`` is called in the new process, before the program.
    """
    words = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(words, log, {**os.environ, **(environment or {})}, first))
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 120) -> int:
    """The exit status of ``process``; it is killed and the test fails if it does not come in time."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process has not ended within {seconds} s")
    return process.exitcode


def end_all(processes: Iterable[ForkServerProcess], seconds: float = 120) -> list[int]:
    """The exit statuses of processes that wait for one another; none outlives another that does not end in time."""
    processes = list(processes)
    try:
        return [end(process, seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(arguments: Sequence[object], *, log: Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status of ``python ARGUMENTS`` and what it printed."""
    status = end(start(arguments, log=log, environment=environment))
    return status, log.read_text()


def free_port() -> int:
    """A port that nobody listens on, for processes that are to meet there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, ranks: int) -> dict[str, str]:
    """What torchrun would put into the environment of a rank on one machine, but for MASTER_PORT."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _run(words: list[str], log: Path, environment: dict[str, str], first: Callable[[], None] | None) -> None:
    gc.freeze()  # what was imported before the fork stays: the collector would walk it, and copy its pages
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if first is not None:
        first()
    option, *rest = words
    if option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(option).parent))
        runpy.run_path(option, run_name="__main__")
