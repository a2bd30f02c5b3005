"""Which chunks keep the graph of their first pass, so that their backward pass needs no second one."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fastdense.grad_cache.memory import activation_bytes, available_bytes

logger = logging.getLogger(__name__)

_GIB = 2**30
_SHARE = {"cpu": 0.5}  # of what is available: other programs want memory there, too, and none is refused any
_LARGEST_SHARE = 0.8  # fragmentation
_COPIES_OF_PARAMETERS = 4  # that may still be to come: gradients, their reduction buckets, two moments of Adam


class GraphBudget:
    """Memory for graphs of the first pass; one object lasts a whole run.

    The first call of the run is measured: bytes that its graph holds, for each padded token. From then on calls keep
    their graphs from the first on until the next one would not fit. Backward passes run in the same order, so that all
    that is kept is gone before a chunk is run again.

    Args:
        gib: memory for kept graphs in GiB, 0 for none; never more than most of what is available when the first call
            has been measured, less the room that a chunk's backward pass, gradients and an optimizer's state will need.
            None: a share of that.
    """

    def __init__(self, gib: float | None = None) -> None:
        self._limit = None if gib is None else int(gib * _GIB)
        self._bytes_per_token: float | None = None
        self._measured_width = 1
        self._trained_bytes = 0
        self._copies_to_come = _COPIES_OF_PARAMETERS
        self._room: torch.UntypedStorage | None = None
        self._spent = 0
        self._open = True

    @property
    def measured(self) -> bool:
        """Whether it is known what a call takes."""
        return self._bytes_per_token is not None

    @property
    def off(self) -> bool:
        """Whether nothing will be kept any more."""
        return self._limit == 0

    @property
    def bytes_per_token(self) -> float:
        """Activations of a padded token; ValueError before the first call is measured."""
        if self._bytes_per_token is None:
            raise ValueError("no call has been measured yet")
        return self._bytes_per_token

    @property
    def spent(self) -> int:
        """Bytes of the graphs that this step keeps."""
        return self._spent

    def start(self) -> None:
        """A step begins: nothing is kept."""
        self._spent = 0
        self._open = True
        self._room = None
        self._copies_to_come = 1 if self.measured else _COPIES_OF_PARAMETERS  # after a step gradients, at most

    def hold_room(self, calls: Iterable[tuple[int, int]], device_type: str) -> None:
        """Until :meth:`release_room`, hold what the step will need when the first pass is over.

        A backward pass that runs out of memory has already added to some gradients and cannot be repeated, a forward
        pass can: so it has to be the one that runs out. On a CPU the memory is only promised, never touched.

        Args:
            calls: padded tokens and width of each call of the step.
        """
        largest = max(self._size(*call) for call in calls)
        if self._room is None:
            size = largest + self._copies_to_come * self._trained_bytes
            self._room = torch.UntypedStorage(size, device=device_type)
        if device_type == "cpu":
            # Within a call oneDNN could be refused memory for code that it writes, and would write none in this thread
            # ever again. So it is asked before the call whether there is enough.
            torch.UntypedStorage(largest)

    def release_room(self) -> None:
        """The first pass is over, or nothing is kept any more."""
        self._room = None

    def admits(self, padded_tokens: int, width: int) -> bool:
        """Whether a call of that many tokens, in rows of ``width``, keeps its graph. If so, it is counted.

        The first call of the run is only tried: ask again when it has been measured.
        """
        if self.off or not self.measured or self._limit is None:
            return not self.off
        size = self._size(padded_tokens, width)
        self._open = self._open and self._spent + size <= self._limit
        self._spent += size if self._open else 0
        return self._open

    def _size(self, padded_tokens: int, width: int) -> int:
        """Bytes of a call's graph. Attention's own may grow with the square of the length, never faster."""
        return int(padded_tokens * self.bytes_per_token * max(1.0, width / self._measured_width))

    def measure(self, run: Callable[[], Any], device_type: str, padded_tokens: int, width: int, model: Any) -> Any:
        """Result of the run's first call, which tells what the others will take."""
        available = available_bytes(device_type)
        result, size = activation_bytes(run, device_type)
        self._bytes_per_token, self._measured_width = size / padded_tokens, width
        parameters = model.parameters() if isinstance(model, nn.Module) else ()
        self._trained_bytes = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        self._limit = self._limit_within(available, size, device_type)
        logger.info(
            "a token's activations take %.1f KiB; graphs of up to %.2f GiB are kept from the first pass",
            self._bytes_per_token / 2**10,
            self._limit / _GIB,
        )
        return result

    def _limit_within(self, available: int | None, chunk: int, device_type: str) -> int:
        asked = self._limit
        if available is None:
            if asked is None:
                self.give_up("this system does not say how much memory is available")
            return asked or 0
        share = _SHARE.get(device_type, _LARGEST_SHARE) if asked is None else _LARGEST_SHARE
        most = max(0, int((available - _COPIES_OF_PARAMETERS * self._trained_bytes) * share) - chunk)
        return most if asked is None else min(asked, most)

    def give_up(self, reason: str) -> None:
        """Keep no graph from now on, and say why."""
        logger.warning("no graphs are kept from now on: %s", reason)
        self._limit = self._spent = 0
        self._room = None
