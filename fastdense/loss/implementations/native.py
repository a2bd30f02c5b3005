"""The compiled implementation: csrc/, loaded as a library of torch operators.

On the CPU the whole operator is compiled. On a GPU the matrix products are torch's, and the kernel between them, from
scores to their gradient, is compiled.
"""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from fastdense.loss import operator
from fastdense.loss.extras import with_extras
from fastdense.loss.problem import row_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot run there, or None if it can. torch.compile traces it."""
    if _LOAD_FAILURE is not None:
        return _LOAD_FAILURE
    if device.type not in ("cpu", "cuda"):
        return f"it has no kernel for {device.type} tensors"
    if device.type == "cuda" and not _CUDA_KERNEL:
        return "it was built without CUDA kernels (no nvcc was found, or FASTDENSE_CUDA was OFF)"
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')} kernel, only float32, bfloat16 and float16"
    return None


def _contrastive_on_gpu(
    query: Tensor,
    passage: Tensor,
    target: Tensor,
    scale: Tensor,
    passage_id: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    mean: bool,
    query_grad: bool,
    passage_grad: bool,
    chunk_bytes: int,
) -> tuple[Tensor, ...]:
    """The same pass over row chunks as csrc/cpu/contrastive.cpp; nothing in it waits for the device."""
    result = operator.empty_results(query, passage, query_grad, passage_grad)
    result.passage_grad.zero_()
    if query.dtype == torch.float16:  # its range is too small for the gradient of a score
        query, passage = query.float(), passage.float()
    target = target.contiguous()
    passage_id = None if passage_id is None else passage_id.contiguous()
    row_weight = row_weights(query, weight, mean).contiguous()
    row_loss, row_scale_grad = torch.empty_like(row_weight), torch.empty_like(row_weight)

    step = max(1, chunk_bytes // max(1, passage.shape[0] * (4 if query.dtype == torch.float32 else 4 + 2)))
    for start in range(0, query.shape[0], step):
        rows = slice(start, start + step)
        chunk = query[rows]
        scores = _product(chunk, passage.T)
        gradient = scores if query.dtype == torch.float32 else torch.empty_like(scores, dtype=query.dtype)
        torch.ops.fastdense.contrastive_rows_(
            scores,
            gradient,
            target[rows],
            scale,
            passage_id,
            row_weight[rows],
            label_smoothing,
            row_loss[rows],
            row_scale_grad[rows],
            result.log_normalizer[rows],
            result.target_score[rows],
            result.correct[rows],
        )
        if query_grad:
            result.query_grad[rows] = _product(gradient, passage)
        if passage_grad:
            result.passage_grad.add_(_product(gradient.T, chunk))
    return tuple(result._replace(loss=row_loss.sum(), scale_grad=row_scale_grad.sum()))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, accumulated and returned in float32."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


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
    _library.impl("contrastive_native", with_extras(_contrastive_on_gpu), "CUDA")
    operator.register(_library, "native")
    return None


_library = torch.library.Library("fastdense", "FRAGMENT")
_LOAD_FAILURE = _load()
# Asked for here, once: torch.compile could not trace an import.
_CUDA_KERNEL = _LOAD_FAILURE is None and bool(importlib.import_module("fastdense._C").build_info()["cuda"])
