"""Memory that a step frees, kept at hand for the next one."""

import ctypes
import logging
import os
import platform

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
_CHOSEN_BY_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step; do nothing with another C library.

    By default it gives large blocks back at once, and the kernel has to clear their pages again when they are next
    touched. Whoever set one of the environment variables for it keeps that choice.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    chosen = next((name for name in _CHOSEN_BY_THE_USER if name in os.environ), None)
    if chosen is not None:
        logger.info("%s decides about the memory that a step frees", chosen)
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
