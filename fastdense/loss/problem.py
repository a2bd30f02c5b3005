"""What a valid contrastive problem is. Everything is checked here, once, before any implementation runs."""

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum")


CPU_CHUNK_BYTES = 32 * 2**20  # about a last-level cache
GPU_CHUNK_BYTES = 2**30  # thousands of rows, or updating passage_grad for each chunk takes longer than its products


def _chunk_bytes_from_environment() -> int | None:
    text = os.environ.get("FASTDENSE_LOSS_CHUNK_BYTES")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(
            f"the environment variable FASTDENSE_LOSS_CHUNK_BYTES must be a positive number of bytes, got {text!r}"
        )
    return int(text)


_CHUNK_BYTES = _chunk_bytes_from_environment()


def default_chunk_bytes(device: torch.device) -> int:
    """The environment's budget for a chunk of scores, or one that suits the device."""
    return _CHUNK_BYTES or (CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES)


@dataclass(frozen=True)
class Problem:
    """A checked problem, complete with its defaults. ``scale`` has the accumulation dtype and no dimensions."""

    query: Tensor
    passage: Tensor
    target: Tensor
    scale: Tensor
    passage_id: Tensor | None
    weight: Tensor | None
    label_smoothing: float
    symmetric: bool
    mean: bool
    chunk_bytes: int


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """``tensor[rows]``, by the operation whose backward is deterministic on the tensor's device."""
    return tensor[rows] if tensor.is_cuda else tensor.index_select(0, rows)


def add_rows_(tensor: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add ``values`` to the given rows of ``tensor``, deterministically also where a row is named twice."""
    if tensor.is_cuda:
        tensor.index_put_((rows,), values, accumulate=True)
    else:
        tensor.index_add_(0, rows, values)


def make_problem(
    query: Tensor,
    passage: Tensor,
    target: Tensor | None,
    scale: float | Tensor,
    passage_id: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    symmetric: bool,
    reduction: str,
    chunk_bytes: int | None,
) -> Problem:
    """Check every argument and fill in the defaults.

    Raises ``TypeError`` for a wrong type or dtype and ``ValueError`` for a wrong shape, device or value. Values that
    lie in tensors (targets, weights, scale) are checked on the CPU only: elsewhere that would wait for the device.
    """
    _check_representations(query, passage)
    rows, columns = query.shape[0], passage.shape[0]
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be 'mean' or 'sum', got {reduction!r}: one pass yields the gradient of a single number; "
            "for the loss of each row use contrastive_loss_and_grad: log_normalizer - target_score"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    if chunk_bytes is not None and (not isinstance(chunk_bytes, int) or chunk_bytes <= 0):
        raise ValueError(f"chunk_bytes must be a positive number of bytes, got {chunk_bytes!r}")
    target = _default_target(query, rows, columns) if target is None else _check_target(target, query, columns)
    if passage_id is not None:
        _check_vector("passage_id", passage_id, columns, "a passage", query.device)
        _check_integer("passage_id", passage_id)
    if weight is not None:
        _check_weight(weight, query)
    return Problem(
        query=query,
        passage=passage,
        target=target,
        scale=_scale_tensor(scale, query),
        passage_id=None if passage_id is None else passage_id.long(),
        weight=None if weight is None else weight.to(accumulation_dtype(query)),
        label_smoothing=float(label_smoothing),
        symmetric=bool(symmetric),
        mean=reduction == "mean",
        chunk_bytes=chunk_bytes or default_chunk_bytes(query.device),
    )


def check_hardest(hardest: int) -> None:
    """Raise ``ValueError`` unless ``hardest`` counts something."""
    if isinstance(hardest, bool) or not isinstance(hardest, int) or hardest < 0:
        raise ValueError(f"hardest must be a number of negatives, 0 or more, got {hardest!r}")


def accumulation_dtype(query: Tensor) -> torch.dtype:
    """The dtype of sums, loss and direct gradients: float32, or float64 for float64 inputs."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def row_weights(query: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
    """[N]: what the loss of each row is multiplied by; all zeros where the weights' sum is zero."""
    if weight is None:
        weight = query.new_ones(query.shape[0], dtype=accumulation_dtype(query))
    if not mean:
        return weight
    total = weight.sum()
    return torch.where(total > 0, weight / total, torch.zeros_like(weight))


def _check_representations(query: Tensor, passage: Tensor) -> None:
    for name, tensor, shape in (("query", query, "[N, D]"), ("passage", passage, "[M, D]")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != 2:
            raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {_name(tensor.dtype)}")
    if query.dtype != passage.dtype:
        raise TypeError(
            f"query and passage must have one dtype, got {_name(query.dtype)} and {_name(passage.dtype)}: convert one"
        )
    if query.device != passage.device:
        raise ValueError(f"query and passage must be on one device, got {query.device} and {passage.device}")
    if query.shape[1] != passage.shape[1]:
        raise ValueError(
            f"query and passage must have the same width D, got {list(query.shape)} and {list(passage.shape)}"
        )
    if query.shape[0] > 0 and passage.shape[0] == 0:
        raise ValueError(f"passage has no rows, but each of the {query.shape[0]} queries needs a target among them")


def _default_target(query: Tensor, rows: int, columns: int) -> Tensor:
    if rows > 0 and columns % rows != 0:
        raise ValueError(
            f"without target, the number of passages must be a multiple of the number of queries (each query's "
            f"target comes first in its group), got {columns} passages for {rows} queries: pass target"
        )
    return torch.arange(rows, device=query.device) * (columns // rows if rows else 1)


def _check_target(target: Tensor, query: Tensor, columns: int) -> Tensor:
    _check_vector("target", target, query.shape[0], "a query", query.device)
    _check_integer("target", target)
    if _values_readable(target) and target.numel() > 0:
        low, high = (int(bound) for bound in torch.aminmax(target))
        if low < 0 or high >= columns:
            raise ValueError(f"target must lie in [0, {columns}), got values from {low} to {high}")
    return target.long()


def _check_weight(weight: Tensor, query: Tensor) -> None:
    _check_vector("weight", weight, query.shape[0], "a query", query.device)
    if not weight.is_floating_point():
        raise TypeError(f"weight must have a floating-point dtype, got {_name(weight.dtype)}")
    if weight.requires_grad:
        raise ValueError("weight requires a gradient, which the loss does not provide: pass weight.detach()")
    if _values_readable(weight) and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError("weight must be finite and not negative in every row")


def _scale_tensor(scale: float | Tensor, query: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.is_floating_point():
            raise ValueError(
                "scale must be a number or a floating-point tensor with one element, "
                f"got {_name(scale.dtype)} {list(scale.shape)}"
            )
        if scale.device != query.device:
            raise ValueError(f"scale must be on the device of query, {query.device}, got {scale.device}")
        if _values_readable(scale):
            _check_scale_value(float(scale.detach()))
        return scale.reshape(()).to(accumulation_dtype(query))
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number or a tensor with one element, got {type(scale).__name__}")
    _check_scale_value(scale)
    return torch.full((), scale, dtype=accumulation_dtype(query), device=query.device)


def _check_scale_value(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale (1 / temperature) must be finite and greater than 0, got {scale}")


def _check_vector(name: str, tensor: Tensor, length: int, owner: str, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.shape != (length,):
        raise ValueError(f"{name} must have one value for {owner}, shape [{length}], got {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of query, {device}, got {tensor.device}")


def _check_integer(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {_name(tensor.dtype)}")


def _values_readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
