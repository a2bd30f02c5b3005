"""What a model call depends on besides its inputs and weights: random generators and autocast."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the CPU's random generator and, for a model on another device, of the current device's."""

    cpu: Tensor
    device_type: str
    device: Tensor | None

    @classmethod
    def capture(cls, device_type: str) -> "RandomState":
        device = None if device_type == "cpu" else torch.get_device_module(device_type).get_rng_state()
        return cls(torch.get_rng_state(), device_type, device)

    def stored_in(self, block: Tensor) -> "RandomState":
        """The same with the CPU's state, 5 KiB, in ``block``: a row of the states of many calls.

        Each by itself would lie where a chunk's tensors have been, and the next chunk's would not fit around it.
        """
        return replace(self, cpu=block.copy_(self.cpu))

    def restore(self) -> None:
        torch.set_rng_state(self.cpu.clone())  # of a row torch would read the first row of the block
        if self.device is not None:
            torch.get_device_module(self.device_type).set_rng_state(self.device)

    @classmethod
    @contextlib.contextmanager
    def kept(cls, device_type: str) -> Iterator[None]:
        """Put the generators back, at the end, to where they were at the start."""
        state = cls.capture(device_type)
        try:
            yield
        finally:
            state.restore()


@dataclass(frozen=True)
class AutocastState:
    """The autocast settings of the calling thread; a backward pass often runs outside of them, or in another thread."""

    settings: tuple[tuple[str, torch.dtype, bool], ...]
    cache: bool

    @classmethod
    def capture(cls, device_type: str) -> "AutocastState":
        settings = tuple(
            (name, torch.get_autocast_dtype(name), torch.is_autocast_enabled(name))
            for name in dict.fromkeys((device_type, "cpu"))
        )
        return cls(settings, torch.is_autocast_cache_enabled())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for device_type, dtype, enabled in self.settings:
                stack.enter_context(torch.autocast(device_type, dtype, enabled, cache_enabled=self.cache))
            yield
