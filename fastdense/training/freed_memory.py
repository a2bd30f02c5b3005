"""Memory that a step frees, kept at hand for the next one and whole enough to be used again."""

import ctypes
import importlib
import importlib.util
import logging
import os
import platform

import torch

from fastdense.loss.implementations.native import NOT_BUILT

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
CHOSEN_BY_THE_USER = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
    "THP_MEM_ALLOC_ENABLE",
)


def reuse_freed_memory() -> None:
    """Have glibc keep what a step frees, in blocks that the next tensors fit; do nothing with another C library.

    By default it gives large blocks back at once, and the kernel has to clear their pages again when they are next
    touched. Of what it keeps it can use only a part again, because torch asks it for aligned blocks; see
    csrc/cpu/tensor_memory.cpp. Whoever set one of the environment variables for it, or has loaded another malloc, keeps
    that choice.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    chosen = next((name for name in CHOSEN_BY_THE_USER if name in os.environ), None) or _other_malloc()
    if chosen is not None:
        logger.info("%s decides about the memory that a step frees", chosen)
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    reason = _allocate_tensors()
    if reason is not None:
        logger.warning("tensors take more memory than they need: %s", reason)


def _other_malloc() -> str | None:
    """What LD_PRELOAD has put in the place of glibc's malloc, in words; None if it is glibc's."""
    used, glibc = (ctypes.cast(library.malloc, ctypes.c_void_p) for library in map(ctypes.CDLL, (None, "libc.so.6")))
    return None if used.value == glibc.value else os.environ.get("LD_PRELOAD") or "another malloc than glibc's"


def _allocate_tensors() -> str | None:
    """Take over torch's allocation of CPU tensors; the reason where that cannot be."""
    if importlib.util.find_spec("fastdense._memory") is None:
        return NOT_BUILT
    built = importlib.import_module("fastdense._C").build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        return f"fastdense was built beside torch {built}, and this is {torch.__version__}: install it again"
    importlib.import_module("fastdense._memory").take_over()
    return None


def _release(version: str) -> list[str]:
    """Within it torch does not change what the allocator is compiled against."""
    return version.split(".")[:2]
