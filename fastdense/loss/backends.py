"""Which implementations there are, and which of them a problem gets."""

from types import ModuleType

import torch

from fastdense.loss.implementations import native, reference

IMPLEMENTATIONS: dict[str, ModuleType] = {"native": native, "reference": reference}
"""In the order in which ``"auto"`` tries them."""


def choose(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the implementation that runs; one asked for by name runs or raises ``ValueError`` with the reason."""
    if implementation == "auto":
        return next(name for name, module in IMPLEMENTATIONS.items() if module.unavailable(device, dtype) is None)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}")
    if reason := IMPLEMENTATIONS[implementation].unavailable(device, dtype):
        raise ValueError(f"implementation {implementation!r} cannot run here: {reason}")
    return implementation


def backends(device: str | torch.device | None = None, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Say what runs where and why.

    Args:
        device: the device asked about; by default the GPU if torch sees one, else the CPU.
        dtype: the dtype of query and passage.

    Returns:
        For each implementation "available" or the reason why it is not, and under "auto" what is picked and why.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    report = {name: module.unavailable(device, dtype) or "available" for name, module in IMPLEMENTATIONS.items()}
    picked = choose("auto", device, dtype)
    passed_over = [f"{name} cannot run: {reason}" for name, reason in report.items() if reason != "available"]
    why = "; ".join(passed_over) or "the fastest of those available"
    return {**report, "auto": f"{picked} for {str(dtype).removeprefix('torch.')} on {device.type} ({why})"}
