"""From tensors to kernel launches: alignment, tile shapes, grids and the buffers of partial results."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdense.loss.exponentials import Chunk, Exponentials, choose_offset, empty_stored, gather
from fastdense.loss.implementations.triton import kernels
from fastdense.loss.offsets import RowOffsets

WORTH_TUNING = 2**26  # scores of a chunk: below, any configuration takes less time than choosing one


@dataclass(frozen=True)
class Tiles:
    """The shape of a tile, which decides the order of sums and so the bits, and what decides only the speed."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int
    group: int = 8
    programs: int = 1
    """Of each multiprocessor."""
    registers: int | None = None
    """The most that a thread may have."""
    descriptors: bool = False
    packed: bool = True
    """Two exponentials are rounded by one instruction, which NVIDIA's GPUs have."""


# The largest tile whose scores, with all that follows the product, stay in registers on every GPU that CI compiles for.
AMPERE = Tiles(rows=128, columns=128, width=64, warps=8, stages=3)
HOPPER = replace(AMPERE, descriptors=True)  # and later
AMD = replace(AMPERE, stages=2, packed=False)
STORED = Tiles(rows=64, columns=128, width=64, warps=8, stages=1, programs=4)  # bound by memory, not by products
TILE_ROWS, TILE_COLUMNS = AMPERE.rows, AMPERE.columns
INTERPRETER = Tiles(rows=32, columns=64, width=32, warps=1, stages=1, group=2, descriptors=True, packed=False)
LARGE_SHARED_MEMORY = 160 * 1024  # bytes a block: four stages fit


def exponentials(chunk: Chunk, guess: RowOffsets) -> Exponentials:
    """Compute the scores of a chunk and store their exponentials."""
    stored = empty_stored(chunk)
    if chunk.query.dtype == torch.float32:
        torch.mm(chunk.query, chunk.passage.T, out=stored)
    tiles = _tiles(chunk, guess, stored)
    offset = _offset(chunk, guess, stored, tiles)
    return _exponentiate(chunk, guess.target_score, offset, stored, tiles)


def subtract_smoothing(stored: Tensor, chunk: Chunk, gain: Tensor, share: Tensor) -> None:
    """``stored`` becomes stored * gain - share in each row's other columns."""
    rows, columns = stored.shape
    block_rows, block_columns = (32, 32) if kernels.INTERPRETED else (16, 256)
    kernels.subtract_smoothing[(-(-rows // block_rows) * -(-columns // block_columns),)](
        stored, stored.stride(0), chunk.target, chunk.label, gain, share, rows, columns, block_rows, block_columns,
        default_tiles(stored.device).packed, kernels.INTERPRETED, enable_fp_fusion=True,
    )  # fmt: skip


def _offset(chunk: Chunk, guess: RowOffsets, stored: Tensor, tiles: Tiles) -> Tensor:
    rows, columns = stored.shape
    maxima, sums = stored.new_empty(2, -(-columns // tiles.columns), rows, dtype=torch.float32)
    kernels.row_maxima_and_sums[_grid(rows, columns, tiles, stored.device)](
        *_operands(chunk, stored, tiles), guess.exact, guess.exact.amax(), chunk.target, chunk.label, chunk.scale,
        maxima, sums, rows, columns, chunk.query.shape[1], **_options(tiles),
    )  # fmt: skip
    return choose_offset(guess, maxima, sums)


def _exponentiate(chunk: Chunk, reference: Tensor, offset: Tensor, stored: Tensor, tiles: Tiles) -> Exponentials:
    rows, columns = stored.shape
    partials = stored.new_empty(4, -(-columns // tiles.columns), rows, dtype=torch.float32)
    target_score = torch.empty_like(offset)
    kernels.exponentials[_grid(rows, columns, tiles, stored.device)](
        *_operands(chunk, stored, tiles), chunk.target, chunk.label, chunk.scale, offset, reference, stored,
        target_score, *partials.unbind(),
        rows, columns, chunk.query.shape[1], **_options(tiles),
    )  # fmt: skip
    return gather(stored, offset, target_score, reference, partials)


def _operands(chunk: Chunk, stored: Tensor, tiles: Tiles) -> tuple[Any, ...]:
    """The kernels' first six arguments: the factors, as descriptors or pointers, or their product; with strides."""
    query, passage = chunk.query, chunk.passage
    if query.dtype == torch.float32:
        return None, 0, None, 0, stored, stored.stride(0)
    strides = query.stride(0), passage.stride(0)
    if tiles.descriptors:
        query = TensorDescriptor.from_tensor(query, [tiles.rows, tiles.width])
        passage = TensorDescriptor.from_tensor(passage, [tiles.columns, tiles.width])
    return query, strides[0], passage, strides[1], None, stored.stride(0)


def _options(tiles: Tiles) -> dict[str, Any]:
    most_registers = {} if tiles.registers is None else {"maxnreg": tiles.registers}
    return most_registers | {
        "BLOCK_ROWS": tiles.rows,
        "BLOCK_COLUMNS": tiles.columns,
        "BLOCK_WIDTH": tiles.width,
        "GROUP": tiles.group,
        "DESCRIPTORS": tiles.descriptors,
        "PACKED": tiles.packed,
        "INTERPRET": kernels.INTERPRETED,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,  # Triton's default is changing
    }


def _grid(rows: int, columns: int, tiles: Tiles, device: torch.device) -> tuple[int]:
    return (min(-(-rows // tiles.rows) * -(-columns // tiles.columns), tiles.programs * _multiprocessors(device)),)


@cache
def _multiprocessors(device: torch.device) -> int:
    return 2 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def default_tiles(device: torch.device) -> Tiles:
    """The tiles for a device. Their shape is no matter of timing, or the bits would change from run to run."""
    if kernels.INTERPRETED:
        return INTERPRETER
    if torch.version.hip is not None:
        return AMD
    return HOPPER if torch.cuda.get_device_capability(device) >= (9, 0) else AMPERE


def candidates(tiles: Tiles, shared_memory: int) -> list[Tiles]:
    """What tuning tries: the depth of the pipeline and the order of tiles depend on memory and caches. No bit changes.

    Two programs on a multiprocessor do one's exponentials during the other's products. For that a thread may have half
    of the registers: with Hopper's products, which leave their factors in shared memory, that is some too few.
    """
    found = [tiles, replace(tiles, group=16)]
    if tiles.descriptors:
        found.append(replace(tiles, programs=2, registers=128))
    if shared_memory >= LARGE_SHARED_MEMORY:
        found.append(replace(tiles, stages=4))
    return found


_tuned: dict[tuple[Any, ...], Tiles] = {}


def _tiles(chunk: Chunk, guess: RowOffsets, stored: Tensor) -> Tiles:
    """Tiles for a chunk. The first large one of a kind is run with each candidate, and waits for the device."""
    if chunk.query.dtype == torch.float32:
        return INTERPRETER if kernels.INTERPRETED else STORED
    tiles = default_tiles(stored.device)
    key = (stored.device, chunk.query.dtype, chunk.query.shape[1], chunk.label is None)
    tunable = stored.is_cuda and stored.numel() >= WORTH_TUNING
    if tunable and key not in _tuned and not torch.cuda.is_current_stream_capturing():
        _tuned[key] = min(
            candidates(tiles, _shared_memory(stored.device)),
            key=lambda one: _seconds(lambda: _exponentiate(chunk, guess.target_score, guess.offset, stored, one)),
        )
    return _tuned.get(key, tiles)


def _shared_memory(device: torch.device) -> int:
    """Bytes that a block may have."""
    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


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
