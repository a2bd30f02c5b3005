"""Which of several processes this one is, as torchrun and its like say in the environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process's number among all (from 0), how many there are, and its number on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Launch":
        """``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; a process alone without them."""
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(rank, world_size, int(os.environ.get("LOCAL_RANK", "0")))
