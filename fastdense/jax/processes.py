"""Several hosts as one run: JAX's processes, and PyTorch's beside them for rows, files and waiting.

A process of JAX is a rank of PyTorch's (over gloo, on the CPU), so that sharding the rows, writing by the first process
alone, and waiting for each other are the torch driver's own.
"""

import os
import socket
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fastdense.errors import UserError

AUTO = "auto"
_NAME_BYTES = 256  # longest host name and port


def join_processes(address: str | None, processes: int | None, index: int | None) -> None:
    """Become one of a run's processes, if the flags or the environment say that there are several.

    Args:
        address: ``host:port`` of the first process, or :data:`AUTO` for what JAX finds out (TPU pods, Slurm, MPI).
        processes, index: how many there are, and which one this is; None for what JAX finds out.

    Raises:
        UserError: JAX does not find out what is not given, or the processes do not find each other.
    """
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        if processes is not None or index is not None:
            raise UserError("--jax_num_processes and --jax_process_id need --jax_coordinator_address HOST:PORT or auto")
        return
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which ends a command cleanly
    try:
        jax.distributed.initialize(None if address == AUTO else address, processes, index)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"--jax_coordinator_address {address}: the processes cannot be joined: {reason}") from error
    if jax.process_count() > 1:
        _join_torch(address)


def check_all_known(processes: int) -> None:
    """Raise UserError if JAX has other processes than PyTorch, as on one host of a TPU pod or under torchrun."""
    found = jax.process_count()
    if found > processes:
        raise UserError(
            f"this host is one of {found} that form one machine: pass --jax_coordinator_address auto on all of them"
        )
    if found < processes:
        raise UserError(
            f"{processes} processes were started that JAX knows nothing of: start one process for all devices of a "
            "host, without torchrun, and beyond one host pass --jax_coordinator_address"
        )


def _join_torch(address: str) -> None:
    """What torchrun would put into the environment."""
    with socket.socket() as free:
        free.bind(("", 0))
        host = socket.gethostname() if address == AUTO else address.rpartition(":")[0]
        name = f"{host}:{free.getsockname()[1]}"
    host, _, port = _from_the_first(name).rpartition(":")
    rank, world = str(jax.process_index()), str(jax.process_count())
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port, RANK=rank, WORLD_SIZE=world)
    os.environ.update(LOCAL_RANK=rank, LOCAL_WORLD_SIZE=world)  # one host may run several: the first one tokenizes


def _from_the_first(name: str) -> str:
    """The first process's ``name``, on every process."""
    text = np.frombuffer(name.encode().ljust(_NAME_BYTES), np.uint8)
    sent: Any = multihost_utils.broadcast_one_to_all(text)
    return np.asarray(sent).astype(np.uint8).tobytes().decode().strip()
