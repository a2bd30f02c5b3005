"""Files and directories whose modes hold for everybody: tests are often run by root, who may read whatever there is."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_VERSION = 0x20080522  # of the structure that the kernel takes
_READ_ALL = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def locked(path: Path, mode: int = 0) -> Iterator[None]:
    """Give ``path`` another ``mode``, and take from this thread what lets root pass over modes."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with _without_roots_right():
            yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def _without_roots_right() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(_VERSION, 0)
        rights = (ctypes.c_uint32 * 6)()
        failed = libc.capget(header, rights)
    except (AttributeError, OSError):
        failed = True
    if failed:
        pytest.skip("this system has no way to take root's rights from a thread")
    effective = rights[0]
    rights[0] = effective & ~_READ_ALL
    assert libc.capset(header, rights) == 0
    try:
        yield
    finally:
        rights[0] = effective
        assert libc.capset(header, rights) == 0
