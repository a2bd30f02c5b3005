"""From tensors to kernel launches: alignment, tile shapes, grids and the buffers of partial results."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdense.loss.implementations.triton import kernels
from fastdense.loss.implementations.triton.offsets import RowOffsets, exact_offset

ALIGNMENT = 16  # bytes, of rows: what tensor descriptors and vector stores need
WORTH_TUNING = 2**26  # scores of a chunk: below, any configuration takes less time than choosing one


@dataclass(frozen=True)
class Tiles:
    """The shape of a tile, which decides the order of sums and so the bits, and what only decides the speed."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int
    group: int = 8


INTERPRETER = Tiles(rows=16, columns=32, width=16, warps=1, stages=1, group=2)
# 64 x 256 for each of two warp groups keeps Hopper's tensor cores busy, and is what cuBLAS takes on Ampere.
LARGE = Tiles(rows=128, columns=256, width=64, warps=8, stages=3)
# For GPUs with 100 KB of shared memory a block (compute capability 8.6, 8.9, 12.0) and AMD's 64 KB.
SMALL = Tiles(rows=128, columns=128, width=64, warps=8, stages=3)
AMD = replace(SMALL, stages=2)
LARGE_SHARED_MEMORY = 160 * 1024


class Chunk(NamedTuple):
    """A chunk of rows, and the passages."""

    query: Tensor
    """[rows, D], aligned."""
    passage: Tensor
    """[M, D], aligned."""
    target: Tensor
    passage_id: Tensor | None
    scale: Tensor
    smoothing: bool


class Exponentials(NamedTuple):
    """What one product leaves; all but ``stored`` are [rows]. "Others" are a row's columns but the target."""

    stored: Tensor
    """[rows, M]: exp(score - offset) of the others, 0 elsewhere; in the dtype of the queries."""
    offset: Tensor
    target_score: Tensor
    largest: Tensor
    """Of the others' scores."""
    total: Tensor
    """Sum of the others' exponentials."""
    moment: Tensor
    """Sum of the others' exponentials times (score - target_score)."""
    excess: Tensor | None
    """Sum of the others' (score - target_score); this and ``others`` only for label smoothing."""
    others: Tensor | None
    """How many others take part."""


def aligned(tensor: Tensor) -> Tensor:
    """A tensor [rows, width] that a descriptor can address: itself, or a copy, with zeros up to a full alignment."""
    unit = ALIGNMENT // tensor.element_size()
    missing = -tensor.shape[1] % unit or (unit if tensor.shape[1] == 0 else 0)
    if missing:
        return torch.nn.functional.pad(tensor, (0, missing))
    fits = tensor.stride(1) == 1 and tensor.stride(0) % unit == 0 and tensor.stride(0) >= tensor.shape[1]
    return (
        tensor if fits and tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)
    )


def exponentials(chunk: Chunk, guess: RowOffsets) -> Exponentials:
    """Compute the scores of a chunk and store their exponentials."""
    rows, columns = chunk.query.shape[0], chunk.passage.shape[0]
    unit = ALIGNMENT // chunk.query.element_size()
    stored = chunk.query.new_empty(rows, -(-columns // unit) * unit)[:, :columns]
    if chunk.query.dtype == torch.float32:
        torch.mm(chunk.query, chunk.passage.T, out=stored)
    tiles = _tiles(chunk, guess, stored)
    offset = _offset(chunk, guess, stored, tiles)
    return _exponentiate(chunk, guess.target_score, offset, stored, tiles)


def subtract_smoothing(stored: Tensor, chunk: Chunk, gain: Tensor, share: Tensor) -> None:
    """``stored`` becomes stored * gain - share in each row's other columns."""
    rows, columns = stored.shape
    block_rows, block_columns = 16, 64 if kernels.INTERPRETED else 256
    kernels.subtract_smoothing[(-(-rows // block_rows) * -(-columns // block_columns),)](
        stored, stored.stride(0), chunk.target, chunk.passage_id, gain, share, rows, columns, block_rows, block_columns
    )


def _offset(chunk: Chunk, guess: RowOffsets, stored: Tensor, tiles: Tiles) -> Tensor:
    rows, columns = stored.shape
    maxima, sums = stored.new_empty(2, -(-columns // tiles.columns), rows, dtype=torch.float32)
    kernels.row_maxima_and_sums[_grid(rows, columns, tiles, stored.device)](
        *_operands(chunk, stored, tiles), guess.exact, chunk.target, chunk.passage_id, chunk.scale, maxima, sums,
        rows, columns, chunk.query.shape[1], **_options(tiles),
    )  # fmt: skip
    return torch.where(guess.exact > 0, exact_offset(maxima, sums), guess.offset)


def _exponentiate(chunk: Chunk, reference: Tensor, offset: Tensor, stored: Tensor, tiles: Tiles) -> Exponentials:
    rows, columns = stored.shape
    partials = stored.new_empty(
        5 if chunk.smoothing else 3, -(-columns // tiles.columns), rows, dtype=torch.float32
    ).unbind()
    target_score = reference.clone()  # of a target out of range, the nan stays
    excesses, counts = partials[3:] if chunk.smoothing else (None, None)
    kernels.exponentials[_grid(rows, columns, tiles, stored.device)](
        *_operands(chunk, stored, tiles), chunk.target, chunk.passage_id, chunk.scale, offset, reference,
        stored, target_score, *partials[:3], excesses, counts,
        rows, columns, chunk.query.shape[1], **_options(tiles),
    )  # fmt: skip
    maxima, sums, moments = partials[:3]
    total = sums.sum(0)
    moved = reference - target_score  # the sums are relative to a target score that was rounded otherwise
    others = None if counts is None else counts.sum(0)
    excess = None if excesses is None or others is None else excesses.sum(0) + moved * others
    moment = moments.sum(0) + moved * total
    return Exponentials(stored, offset, target_score, maxima.amax(0), total, moment, excess, others)


def _operands(chunk: Chunk, stored: Tensor, tiles: Tiles) -> tuple[Any, ...]:
    """The kernels' first four arguments: descriptors of the factors, or the product."""
    if chunk.query.dtype == torch.float32:
        return None, None, stored, stored.stride(0)
    query = TensorDescriptor.from_tensor(chunk.query, [tiles.rows, tiles.width])
    passage = TensorDescriptor.from_tensor(chunk.passage, [tiles.columns, tiles.width])
    return query, passage, None, stored.stride(0)


def _options(tiles: Tiles) -> dict[str, Any]:
    return {
        "BLOCK_ROWS": tiles.rows,
        "BLOCK_COLUMNS": tiles.columns,
        "BLOCK_WIDTH": tiles.width,
        "GROUP": tiles.group,
        "INTERPRET": kernels.INTERPRETED,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def _grid(rows: int, columns: int, tiles: Tiles, device: torch.device) -> tuple[int]:
    return (min(-(-rows // tiles.rows) * -(-columns // tiles.columns), _processors(device)),)


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def default_tiles(device: torch.device) -> Tiles:
    """The tile shape for a device: not a matter of timing, or the bits would change from run to run."""
    if kernels.INTERPRETED:
        return INTERPRETER
    if torch.version.hip is not None:
        return AMD
    index = torch.cuda.current_device() if device.index is None else device.index
    shared_memory = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return LARGE if shared_memory >= LARGE_SHARED_MEMORY else SMALL


def candidates(tiles: Tiles) -> list[Tiles]:
    """What tuning tries: pipeline depth and the order of tiles depend on memory and cache, and change no bit."""
    if tiles.columns == LARGE.columns:
        return [tiles, replace(tiles, stages=4), replace(tiles, group=16), replace(tiles, stages=4, group=16)]
    return [tiles, replace(tiles, stages=2), replace(tiles, group=16)]


_tuned: dict[tuple[Any, ...], Tiles] = {}


def _tiles(chunk: Chunk, guess: RowOffsets, stored: Tensor) -> Tiles:
    """Tiles for a chunk; the first large one of a kind is run with each candidate, and waits for the device."""
    tiles = default_tiles(stored.device)
    if kernels.INTERPRETED or chunk.query.dtype == torch.float32:  # float32 is done in place: once only
        return tiles
    key = (stored.device, chunk.query.dtype, chunk.query.shape[1], chunk.passage_id is None, chunk.smoothing)
    if key not in _tuned and stored.numel() >= WORTH_TUNING and not torch.cuda.is_current_stream_capturing():
        _tuned[key] = min(
            candidates(tiles),
            key=lambda one: _seconds(lambda: _exponentiate(chunk, guess.target_score, guess.offset, stored, one)),
        )
    return _tuned.get(key, tiles)


def _seconds(run: Callable[[], object], repeats: int = 3) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        run()
    except OutOfResources:
        return float("inf")
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats
