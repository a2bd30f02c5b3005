"""What a CPU needs to train at its speed: freed memory that stays at hand, and dropout that keeps up."""

import ctypes
import logging
import os
import platform

from torch import nn

from fastdense.training.dropout import use_cpu_dropout

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


def settle_on_cpu(model: nn.Module, *, own_attention: bool, own_dropout: bool) -> None:
    """Prepare a model, and this process, for training on a CPU.

    Args:
        model: dropout modules in it are replaced.
        own_attention: nobody has asked for an implementation of attention by name.
        own_dropout: False for a model that torch.compile will see.
    """
    keep_freed_memory()
    if not own_dropout:
        return
    reason = use_cpu_dropout(model, own_attention)
    if reason is not None:
        logger.warning("dropout on this CPU is torch's, which is slower: %s", reason)
