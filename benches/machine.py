"""The machine that a bench runs on: what it is called, and how much of its memory a call takes."""

import platform
from collections.abc import Callable
from pathlib import Path

import torch

# What people call a processor that says only its family and model.
PROCESSORS = {
    "AMD EPYC (family 25, model 1)": "AMD Zen 3",
    "AMD EPYC (family 25, model 17)": "AMD Zen 4",
    "Intel(R) Xeon(R) Processor (family 6, model 167)": "Intel Xeon with AMX (167)",
    "Intel(R) Xeon(R) Processor (family 6, model 207)": "Intel Xeon with AMX (207)",
}


def device_name(device: str) -> str:
    """What the machine calls its processor."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    return facts.get("model name", platform.machine()) + family


def short_name(machine: str) -> str:
    """Of what ``device_name`` has said, for a table or a picture."""
    return PROCESSORS.get(machine, machine)


def peak_mib(function: Callable[[], object], device: str) -> float | None:
    """MiB that a call adds at its peak; None where the system does not say."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident memory
    except OSError:
        return None
    before = resident_kib("VmRSS")
    function()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str, process: int | str = "self") -> int:
    """KiB of a field of /proc/PROCESS/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
