"""How batches come to a GPU without its step waiting for them: what the flags of the data loader leave open.

On a CPU the step itself takes all cores, and a worker process would take one of them away from it.
"""

import os

WORKERS = 2  # a step on a GPU lasts longer than making its batch; the second is for longer texts and more passages


def default_workers(cores: int, processes: int) -> int:
    """Worker processes of each of ``processes`` training processes on a machine, which keep a core each."""
    return min(WORKERS, max(0, cores // processes - 1))


def machine_share() -> tuple[int, int]:
    """Cores that this process may use, and the training processes that torchrun has started beside and with it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
