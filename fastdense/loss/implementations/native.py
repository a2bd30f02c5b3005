"""The compiled implementation: csrc/, loaded as a library of torch operators.

On the CPU the whole operator is compiled. On a GPU, in bfloat16, the first product is compiled with all that follows it
(csrc/cuda/exponentials.cuh), in the pass of fastdense/loss/exponential_pass.py; in float32, in which float16 runs too,
all products are torch's, and the kernel between them, from scores to their gradient, is compiled.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdense.loss import exponential_pass, operator
from fastdense.loss.exponentials import Chunk, Exponentials, choose_offset, empty_stored, gather
from fastdense.loss.extras import with_extras
from fastdense.loss.offsets import RowOffsets
from fastdense.loss.problem import CPU, row_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NOT_BUILT = "fastdense was not built: install it with pip (torch must be installed before it)"


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot run there, or None if it can. torch.compile traces it."""
    if _LOAD_FAILURE is not None:
        return _LOAD_FAILURE
    if device != CPU:
        if device.type != "cuda":
            return f"it has no kernel for {device.type} tensors"
        if not _CUDA_KERNEL:
            return "it was built without CUDA kernels (no nvcc was found, or FASTDENSE_CUDA was OFF)"
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')} kernel, only float32, bfloat16 and float16"
    return None


class _Kernels:
    """Those of csrc/cuda/exponentials.cuh, for bfloat16."""

    TILE_ROWS = TILE_COLUMNS = 128  # as in csrc/cuda/chunk.h

    def exponentials(self, chunk: Chunk, guess: RowOffsets) -> Exponentials:
        stored = empty_stored(chunk)
        rows, columns = stored.shape
        partials = stored.new_empty(4, -(-columns // self.TILE_COLUMNS), rows, dtype=torch.float32)
        operators = torch.ops.fastdense
        operators.score_maxima_(*chunk, guess.exact, partials[:2])
        offset = choose_offset(guess, partials[0], partials[1])
        target_score = torch.empty_like(offset)
        operators.score_exponentials_(*chunk, offset, guess.target_score, stored, target_score, partials)
        return gather(stored, offset, target_score, guess.target_score, partials)

    def subtract_smoothing(self, stored: Tensor, chunk: Chunk, gain: Tensor, share: Tensor) -> None:
        torch.ops.fastdense.smooth_exponentials_(stored, chunk.target, chunk.label, gain, share)


def _contrastive_on_gpu(query: Tensor, passage: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.autocast(query.device.type, enabled=False):  # it would turn float32 products to half precision
        if query.dtype == torch.bfloat16:
            return exponential_pass.contrastive(_Kernels(), query, passage, *arguments)
        # float16's range is too small for the gradient of a score.
        return _float32_on_gpu(query.float(), passage.float(), *arguments)


def _float32_on_gpu(
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
    target = target.contiguous()
    passage_id = None if passage_id is None else passage_id.contiguous()
    row_weight = row_weights(query, weight, mean).contiguous()
    row_loss, row_scale_grad = torch.empty_like(row_weight), torch.empty_like(row_weight)

    step = max(1, chunk_bytes // max(1, passage.shape[0] * 4))
    for start in range(0, query.shape[0], step):
        rows = slice(start, start + step)
        scores = query[rows] @ passage.T
        torch.ops.fastdense.contrastive_rows_(
            scores,
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
            torch.mm(scores, passage, out=result.query_grad[rows])
        if passage_grad:
            result.passage_grad.addmm_(scores.T, query[rows])
    return tuple(result._replace(loss=row_loss.sum(), scale_grad=row_scale_grad.sum()))


def _load() -> str | None:
    """Load the operators; return None, or the reason why that was not possible."""
    # In an editable install the compiled files lie elsewhere than this one; the extension module knows where.
    extension = importlib.util.find_spec("fastdense._C")
    if extension is None or extension.origin is None:
        return NOT_BUILT
    try:
        torch.ops.load_library(Path(extension.origin).with_name("_ops.so"))
    except OSError as error:
        return f"its library could not be loaded: {error}"
    _library.impl("contrastive_native", operator.as_operator(with_extras(_contrastive_on_gpu)), "CUDA")
    operator.register(_library, "native")
    return None


_library = torch.library.Library("fastdense", "FRAGMENT")
_LOAD_FAILURE = _load()
# Asked for here, once: torch.compile could not trace an import.
_CUDA_KERNEL = _LOAD_FAILURE is None and bool(importlib.import_module("fastdense._C").build_info()["cuda"])
