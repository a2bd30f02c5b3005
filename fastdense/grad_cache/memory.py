"""How much memory there is, and how much of it a forward pass holds for its backward."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PROCESS_LIMITS = (("Max address space", "VmSize"), ("Max data size", "VmData"))  # ulimit -v and -d; what counts
_CGROUPS = (  # of a container: limit, use, and the part of it that is only cached files
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
# torch's allocators; the C++ library's; cuBLAS's; and oneDNN's, which names only what it was about to do.
_FAILED_ALLOCATIONS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
)


def available_bytes(device_type: str) -> int | None:
    """Memory of the current device that this process could still take; None where nothing tells.

    On a CPU it is this process's share, as one of torchrun's on its machine, within its ulimit. Waits for no device.
    """
    if device_type == "cpu":
        return _available_on_host()
    try:
        free, _ = torch.accelerator.get_memory_info()
        return free + torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
    except (AttributeError, RuntimeError, NotImplementedError):  # a device without the allocator's numbers
        return None


def _available_on_host(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    for limit_file, use_file, cached in _CGROUPS:
        limit, use = cgroup / limit_file, cgroup / use_file
        if not limit.is_file() or not use.is_file() or not limit.read_text().strip().isdigit():  # "max": no limit
            continue
        statistics = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        used = int(use.read_text()) - int(statistics.get(cached, 0))
        available = min(available, int(limit.read_text()) - used)
    share = max(0, available) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min([share, *_left_by_limits(proc / "self")])


def _left_by_limits(process: Path) -> list[int]:
    """Bytes that each of the process's own limits still lets it take."""
    try:
        limits = (process / "limits").read_text().splitlines()
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    except OSError:
        return []
    left = []
    for name, counted in _PROCESS_LIMITS:
        soft = next((line[len(name) :].split()[0] for line in limits if line.startswith(name)), "unlimited")
        if soft.isdigit():
            left.append(max(0, int(soft) - 1024 * int(status[counted].split()[0])))
    return left


def activation_bytes(run: Callable[[], Any], device_type: str) -> tuple[Any, int]:
    """What ``run`` returns, and the bytes that its results and their graph hold as long as they live."""
    if device_type != "cpu":
        before = torch.accelerator.memory_allocated()
        result = run()
        return result, torch.accelerator.memory_allocated() - before
    with _Allocations() as allocations:
        result = run()
    return result, allocations.alive()


class _Allocations(TorchDispatchMode):
    """Remembers what operations allocate: a CPU's allocator does not count."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        for leaf in tree_leaves(result):
            if _is_plain(leaf):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in inputs:  # views and in-place results belong to what was there
                    self._storages[reference] = storage.nbytes()
        return result

    def alive(self) -> int:
        """Bytes of what is still there."""
        return sum(size for storage, size in self._storages.items() if not storage.expired())


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` may say that an allocation failed, on an accelerator or on a CPU.

    oneDNN's messages can mean something else: try once more, and if that fails, too, pass the error on.
    """
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(message in str(error) for message in _FAILED_ALLOCATIONS)


def in_short(error: BaseException) -> str:
    """What ``error`` says, without the place in torch's code and without advice."""
    first, *others = str(error).split(". ")
    return (others[0] if others and first.startswith("[enforce fail") else first) or type(error).__name__


def give_back_freed(device_type: str) -> None:
    """Give freed memory back to the system, for those who do not ask the allocator that keeps it.

    Such are oneDNN, which maps pages for the code that it writes, and a GPU's driver, which loads kernels.
    """
    if device_type != "cpu":
        torch.accelerator.empty_cache()
    elif hasattr(ctypes.pythonapi, "malloc_trim"):  # glibc's
        ctypes.pythonapi.malloc_trim(0)
