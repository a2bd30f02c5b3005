"""Which implementations there are, and which of them a problem gets."""

from types import ModuleType

import torch

from fastdense.loss.implementations import native, reference, triton
from fastdense.loss.problem import CPU

IMPLEMENTATIONS: dict[str, ModuleType] = {"native": native, "triton": triton, "reference": reference}


def _candidates(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries on a device, best first."""
    if device == CPU:
        return ("native", "reference")
    # Nobody's training should be the first run of a kernel: triton, then native, go first here once
    # benches/gpu_check.sh has passed on a GPU. By name they are there already.
    return ("reference",)


def choose(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the implementation that runs; one asked for by name runs or raises ``ValueError`` with the reason."""
    if implementation == "auto":
        for name in _candidates(device):
            if IMPLEMENTATIONS[name].unavailable(device, dtype) is None:
                return name
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
    device = torch.device(torch.device(device).type)
    report = {name: module.unavailable(device, dtype) or "available" for name, module in IMPLEMENTATIONS.items()}
    picked = choose("auto", device, dtype)
    return {**report, "auto": f"{picked} for {_name(dtype)} on {device.type}, because {_why(picked, device, report)}"}


def _why(picked: str, device: torch.device, report: dict[str, str]) -> str:
    better = _candidates(device)[: _candidates(device).index(picked)]
    if better:
        return " and ".join(f"{name} cannot run: {report[name]}" for name in better)
    if device.type != "cpu":
        return "the others have not yet run on a GPU; ask for triton or native by name"
    return "it is the fastest of those available"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
