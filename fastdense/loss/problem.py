"""What a valid contrastive problem is. Everything is checked here, once, before any implementation runs.

What can be said without torch is in :mod:`fastdense.loss.rules`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdense.loss import rules

CPU = torch.device("cpu")  # to compare with: asking for a device's type takes microseconds
FLOATING = ("float32", "bfloat16", "float16", "float64")
_NAMES = {getattr(torch, name): name for name in FLOATING}


class Problem(NamedTuple):
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
    rules.check_options(label_smoothing, reduction, chunk_bytes)
    if target is None:
        step = rules.default_target_step(rows, columns)
        target = torch.arange(0, rows * step, step, device=query.device)
    else:
        target = _check_target(target, query, columns)
    if passage_id is not None:
        _check_vector("passage_id", passage_id, columns, "a passage", query.device)
        _check_integer("passage_id", passage_id)
    if weight is not None:
        weight = _check_weight(weight, query)
    return Problem(
        query=query,
        passage=passage,
        target=target,
        scale=_scale_tensor(scale, query),
        passage_id=None if passage_id is None else passage_id.long(),
        weight=weight,
        label_smoothing=float(label_smoothing),
        symmetric=bool(symmetric),
        mean=reduction == "mean",
        chunk_bytes=chunk_bytes or rules.default_chunk_bytes(on_cpu=query.is_cpu),
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
    exact = weight.double()  # the sum of large ones may exceed float32
    total = exact.sum()
    return torch.where(total > 0, exact / total, 0.0).to(weight.dtype)


def _check_representations(query: Tensor, passage: Tensor) -> None:
    for name, tensor in (("query", query), ("passage", passage)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        rules.check_representation(name, tensor.shape, _name(tensor.dtype), FLOATING)
    if query.device != passage.device:
        raise ValueError(f"query and passage must be on one device, got {query.device} and {passage.device}")
    rules.check_pair(query.shape, passage.shape, _name(query.dtype), _name(passage.dtype))


def _check_target(target: Tensor, query: Tensor, columns: int) -> Tensor:
    _check_vector("target", target, query.shape[0], "a query", query.device)
    _check_integer("target", target)
    if _values_readable(target) and target.numel() > 0:
        rules.check_target_range(*_range(target), columns)
    return target.long()


def _range(values: Tensor) -> tuple[int, int]:
    """The smallest and the largest; of few values without an operation of torch's, which small problems notice."""
    if values.numel() <= 64:
        few = values.tolist()
        return min(few), max(few)
    low, high = torch.aminmax(values)
    return int(low), int(high)


def _check_weight(weight: Tensor, query: Tensor) -> Tensor:
    _check_vector("weight", weight, query.shape[0], "a query", query.device)
    rules.check_weight(weight.is_floating_point(), _name(weight.dtype))
    if weight.requires_grad:
        raise ValueError("weight requires a gradient, which the loss does not provide: pass weight.detach()")
    weight = weight.to(accumulation_dtype(query))
    if _values_readable(weight):
        rules.check_weight_values(bool(((weight >= 0) & weight.isfinite()).all()))
    return weight


def _scale_tensor(scale: float | Tensor, query: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        rules.check_scale_array("tensor", scale.shape, scale.is_floating_point(), _name(scale.dtype))
        if scale.device != query.device:
            raise ValueError(f"scale must be on the device of query, {query.device}, got {scale.device}")
        if _values_readable(scale):
            rules.check_scale_value(float(scale.detach()))
        return scale.reshape(()).to(accumulation_dtype(query))
    rules.check_scale_number(scale, "a tensor")
    return torch.full((), scale, dtype=accumulation_dtype(query), device=query.device)


def _check_vector(name: str, tensor: Tensor, length: int, owner: str, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    rules.check_length(name, tensor.shape, length, owner)
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of query, {device}, got {tensor.device}")


def _check_integer(name: str, tensor: Tensor) -> None:
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    rules.check_integer(name, is_integer, _name(tensor.dtype))


def _values_readable(tensor: Tensor) -> bool:
    return tensor.is_cpu and not torch.compiler.is_compiling()


def _name(dtype: torch.dtype) -> str:
    return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")
