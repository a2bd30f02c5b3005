"""How the ranks of a run end: none before rank 0 has saved, and none whose process group still has threads."""

import atexit

import torch.distributed as dist
from accelerate import PartialState


def end_together() -> None:
    """Wait until every rank has got here, and have this one leave the process group before Python ends.

    torchrun ends all ranks as soon as one of them fails, and a rank that only ends can fail: a thread of Gloo frees the
    tensors of the last collective, for which it needs the interpreter, and where that is ending already the process
    aborts (torch 2.13 with Python 3.11, where other work keeps the processors busy). Leaving waits for these threads.
    It comes at Python's end and not here, because a process group cannot be entered again for another run.
    """
    if dist.is_available() and dist.is_initialized():
        PartialState().wait_for_everyone()
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():  # another run in this process may have registered this, too
        dist.destroy_process_group()
