"""The rules of a valid problem that need no tensor library: shapes, names of dtypes, numbers, and every sentence.

Shared by the loss for torch (:mod:`fastdense.loss.problem`) and the one for JAX.
"""

import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

REDUCTIONS = ("mean", "sum")
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32's normal numbers

CPU_CHUNK_BYTES = 48 * 2**20  # every chunk packs the passages twice; with its operands a call stays below 64 MiB
ACCELERATOR_CHUNK_BYTES = 2**30  # thousands of rows, or updating passage_grad takes longer than a chunk's products


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


def default_chunk_bytes(on_cpu: bool) -> int:
    """The environment's budget for a chunk of scores, or one that suits the device."""
    return _CHUNK_BYTES or (CPU_CHUNK_BYTES if on_cpu else ACCELERATOR_CHUNK_BYTES)


def check_options(label_smoothing: float, reduction: str, chunk_bytes: int | None) -> None:
    """``ValueError`` for a value that no problem can have."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be 'mean' or 'sum', got {reduction!r}: one pass yields the gradient of a single number; "
            "for the loss of each row (in one direction, without label smoothing) use contrastive_loss_and_grad: "
            "log_normalizer - target_score"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    if chunk_bytes is not None and (not isinstance(chunk_bytes, int) or chunk_bytes <= 0):
        raise ValueError(f"chunk_bytes must be a positive number of bytes, got {chunk_bytes!r}")


def check_representation(name: str, shape: Sequence[int], dtype: str, dtypes: Sequence[str]) -> None:
    """``query`` or ``passage`` by itself: two dimensions and one of ``dtypes``."""
    if len(shape) != 2:
        expected = "[N, D]" if name == "query" else "[M, D]"
        raise ValueError(f"{name} must have shape {expected}, got {list(shape)}")
    if dtype not in dtypes:
        raise TypeError(f"{name} must be {', '.join(dtypes[:-1])} or {dtypes[-1]}, got {dtype}")


def check_pair(query: Sequence[int], passage: Sequence[int], query_dtype: str, passage_dtype: str) -> None:
    """The shapes and dtypes of query and passage against each other."""
    if query_dtype != passage_dtype:
        raise TypeError(f"query and passage must have one dtype, got {query_dtype} and {passage_dtype}: convert one")
    if query[1] != passage[1]:
        raise ValueError(f"query and passage must have the same width D, got {list(query)} and {list(passage)}")
    if query[0] > 0 and passage[0] == 0:
        raise ValueError(f"passage has no rows, but each of the {query[0]} queries needs a target among them")


def default_target_step(rows: int, columns: int) -> int:
    """How far apart the default targets are: each query's passage comes first in its group."""
    if rows > 0 and columns % rows != 0:
        raise ValueError(
            f"without target, the number of passages must be a multiple of the number of queries (each query's "
            f"target comes first in its group), got {columns} passages for {rows} queries: pass target"
        )
    return columns // rows if rows else 1


def check_length(name: str, shape: Sequence[int], length: int, owner: str) -> None:
    """A vector with one value for each ``owner``."""
    if tuple(shape) != (length,):
        raise ValueError(f"{name} must have one value for {owner}, shape [{length}], got {list(shape)}")


def check_integer(name: str, is_integer: bool, dtype: str) -> None:
    """``target`` and ``passage_id`` hold integers."""
    if not is_integer:
        raise TypeError(f"{name} must have an integer dtype, got {dtype}")


def check_target_range(low: int, high: int, columns: int) -> None:
    """The smallest and the largest target name a passage."""
    if low < 0 or high >= columns:
        raise ValueError(f"target must lie in [0, {columns}), got values from {low} to {high}")


def check_weight(is_floating: bool, dtype: str) -> None:
    """``weight`` holds floating-point numbers."""
    if not is_floating:
        raise TypeError(f"weight must have a floating-point dtype, got {dtype}")


def check_weight_values(valid: bool) -> None:
    """``valid``: whether every weight is finite and not negative."""
    if not valid:
        raise ValueError("weight must be finite and not negative in every row")


def check_scale_array(array: str, shape: Sequence[int], is_floating: bool, dtype: str) -> None:
    """A scale that is an array (``array``: what messages call it) has one floating-point element."""
    if math.prod(shape) != 1 or not is_floating:
        raise ValueError(
            f"scale must be a number or a floating-point {array} with one element, got {dtype} {list(shape)}"
        )


def check_scale_number(scale: Any, array: str) -> None:
    """A scale that is no array (``array``: what messages call one) is a number, and a valid one."""
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not is_number:
        raise TypeError(f"scale must be a number or {array} with one element, got {type(scale).__name__}")
    check_scale_value(scale)


def check_scale_value(scale: float) -> None:
    """1 / temperature is positive, and in float32, too, neither zero nor infinite. (torch.compile traces it.)"""
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale (1 / temperature) must in float32 be finite and greater than 0, got {scale}")
