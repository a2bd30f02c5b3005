"""The compiled implementation: csrc/, loaded as a library of torch operators."""

import importlib.util
from pathlib import Path

import torch

from fastdense.loss import operator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot run there, or None if it can."""
    if _LOAD_FAILURE is not None:
        return _LOAD_FAILURE
    if device.type != "cpu":
        return f"it has no kernel for {device.type} tensors yet"
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')} kernel, only float32, bfloat16 and float16"
    return None


def _load() -> str | None:
    """Load the operators; return None, or the reason why that was not possible."""
    # In an editable install the compiled files lie elsewhere than this one; the extension module knows where.
    extension = importlib.util.find_spec("fastdense._C")
    if extension is None or extension.origin is None:
        return "fastdense was not built: install it with pip (torch must be installed before it)"
    try:
        torch.ops.load_library(Path(extension.origin).with_name("_ops.so"))
    except OSError as error:
        return f"its library could not be loaded: {error}"
    operator.register(_library, "native")
    return None


_library = torch.library.Library("fastdense", "FRAGMENT")
_LOAD_FAILURE = _load()
