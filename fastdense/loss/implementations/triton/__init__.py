"""The Triton implementation: scores become exponentials before they are stored; the other products are torch's.

For bfloat16 it is one pass of three products over row chunks. The kernel of the first keeps E = exp(score - offset)
instead of the scores (fastdense/loss/exponential_pass.py has the pass, offsets.py the offset).

float16 has too small a range for offsets from a bound: its rows get their exact log-sum-exp first, by a product more.
float32 has the scores from torch's product, which rounds every sum to nearest (a tensor core does not), and Triton's
kernels work in place on them.
"""

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.exponential_pass import contrastive
from fastdense.loss.extras import with_extras

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # bfloat16 on tensor cores


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot run there, or None if it can. torch.compile traces it."""
    if not _INSTALLED:
        return "triton is not installed (pip install triton)"
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')} kernel, only float32, bfloat16 and float16"
    if device.type == "cpu":
        return None if _INTERPRETED else "it runs on a GPU; on a CPU only in Triton's interpreter (TRITON_INTERPRET=1)"
    if device.type != "cuda":
        return f"it has no kernel for {device.type} tensors"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip is None and (found.major, found.minor) < OLDEST_CAPABILITY:
        return f"it needs a GPU of compute capability 8.0 or newer, this one has {found.major}.{found.minor}"
    return None


def _contrastive(query: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.autocast(query.device.type, enabled=False):  # it would turn float32 products to half precision
        # At first use: `import fastdense` must not wait for triton.
        launch = importlib.import_module("fastdense.loss.implementations.triton.launch")
        return contrastive(launch, query, *arguments)


_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_library = torch.library.Library("fastdense", "FRAGMENT")
operator.define(_library, "triton", with_extras(_contrastive))
