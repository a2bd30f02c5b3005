"""The Triton kernels: products of tiles with the softmax's work done before anything is stored.

A launch covers one chunk of rows. Each program takes tiles of [BLOCK_ROWS, BLOCK_COLUMNS] scores in turn, ordered so
that programs running at the same time share rows and columns in cache. Sums over a row are left as one value for each
block of columns, which the caller adds up in order: no atomics, so the bits are the same in every run.
"""

import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret  # as it was when the kernels below were decorated

# Chunks differ in these; specializing on them would compile the last, shorter chunk again.
_VARYING = ["rows", "columns"]


@triton.jit
def _tile_at(index, row_blocks, column_blocks, GROUP: tl.constexpr):
    """Blocks of rows and columns of the index-th tile: down GROUP blocks of rows, then on to the next columns."""
    group = index // (GROUP * column_blocks)
    within = index % (GROUP * column_blocks)
    size = tl.minimum(row_blocks - group * GROUP, GROUP)
    return group * GROUP + within % size, within // size


@triton.jit
def _score_tile(
    query,
    passage,
    scores,
    stride,
    row,
    column,
    first_row,
    first_column,
    rows,
    columns,
    width,
    scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of scaled scores: of dot products that ``scores`` holds, or computed where ``query`` is given."""
    if query is None:
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = scores + row.to(tl.int64)[:, None] * stride + column[None, :]
        dot = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    else:
        dot = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for k in range(0, width, BLOCK_WIDTH):
            q = query.load([first_row, k])
            p = passage.load([first_column, k])
            if INTERPRET:  # its dot misreads bfloat16
                q = q.to(tl.float32)
                p = p.to(tl.float32)
            dot = tl.dot(q, p.T, dot)
    return dot * scale


@triton.jit
def _others(column, columns, target, target_id, passage_id):
    """[rows, columns]: the columns that take part in a row, other than its target."""
    others = (column < columns)[None, :] & (column[None, :] != target[:, None])
    if passage_id is not None:
        identity = tl.load(passage_id + column, mask=column < columns, other=0)
        others = others & (identity[None, :] != target_id[:, None])
    return others


@triton.jit
def _ids_of_targets(target, passage_id):
    if passage_id is not None:
        return tl.load(passage_id + target)
    else:
        return target


@triton.jit(do_not_specialize=_VARYING)
def row_maxima_and_sums(
    query,
    passage,
    scores,
    stride,
    wanted,
    target,
    passage_id,
    scale,
    maxima,
    sums,
    rows,
    columns,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """For each block of columns, the other columns' largest score and sum of exp(score - largest): [blocks, rows].

    A block of rows of which none is ``wanted`` (int8) is left as it was.
    """
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    factor = tl.load(scale)
    for index in tl.range(tl.program_id(0), row_blocks * column_blocks, tl.num_programs(0)):
        row_block, column_block = _tile_at(index, row_blocks, column_blocks, GROUP)
        first_row = row_block * BLOCK_ROWS
        first_column = column_block * BLOCK_COLUMNS
        row = first_row + tl.arange(0, BLOCK_ROWS)
        column = first_column + tl.arange(0, BLOCK_COLUMNS)
        if tl.max(tl.load(wanted + row, mask=row < rows, other=0).to(tl.int32), 0) > 0:
            score = _score_tile(
                query, passage, scores, stride, row, column, first_row, first_column, rows, columns, width, factor,
                BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, INTERPRET,
            )  # fmt: skip
            target_column = tl.load(target + row, mask=row < rows, other=0)
            target_id = _ids_of_targets(target_column, passage_id)
            others = _others(column, columns, target_column, target_id, passage_id)
            score = tl.where(others, score, -float("inf"))
            largest = tl.max(score, 1)
            # Where no column takes part: -inf - -inf would be nan.
            reference = tl.where(largest == -float("inf"), 0.0, largest)
            out = column_block.to(tl.int64) * rows + row
            tl.store(maxima + out, largest, mask=row < rows)
            tl.store(sums + out, tl.sum(tl.exp(score - reference[:, None]), 1), mask=row < rows)


@triton.jit(do_not_specialize=_VARYING)
def exponentials(
    query,
    passage,
    scores,
    stride,
    target,
    passage_id,
    scale,
    offset,
    reference,
    out,
    target_score,
    maxima,
    sums,
    moments,
    excesses,
    counts,
    rows,
    columns,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """exp(score - offset) of each row's other columns, and 0 elsewhere, into ``out`` [rows, stride].

    For each block of columns also, [blocks, rows]: the largest score, the sum of the exponentials, that of the
    exponentials times (score - reference), and, where ``excesses`` is given, the sum of (score - reference) and the
    number of other columns. ``target_score`` gets the score of the target from this same product, so that it compares
    with equal columns as equal.
    """
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    factor = tl.load(scale)
    for index in tl.range(tl.program_id(0), row_blocks * column_blocks, tl.num_programs(0)):
        row_block, column_block = _tile_at(index, row_blocks, column_blocks, GROUP)
        first_row = row_block * BLOCK_ROWS
        first_column = column_block * BLOCK_COLUMNS
        row = first_row + tl.arange(0, BLOCK_ROWS)
        column = first_column + tl.arange(0, BLOCK_COLUMNS)
        in_rows = row < rows
        score = _score_tile(
            query, passage, scores, stride, row, column, first_row, first_column, rows, columns, width, factor,
            BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, INTERPRET,
        )  # fmt: skip
        target_column = tl.load(target + row, mask=in_rows, other=0)
        target_id = _ids_of_targets(target_column, passage_id)
        others = _others(column, columns, target_column, target_id, passage_id)

        here = (target_column >= first_column) & (target_column < first_column + BLOCK_COLUMNS) & in_rows
        if tl.max(here.to(tl.int32), 0) > 0:
            of_target = tl.sum(tl.where(column[None, :] == target_column[:, None], score, 0.0), 1)
            tl.store(target_score + row, of_target, mask=here)

        row_offset = tl.load(offset + row, mask=in_rows, other=0.0)
        row_reference = tl.load(reference + row, mask=in_rows, other=0.0)
        exponential = tl.where(others, tl.exp(score - row_offset[:, None]), 0.0)
        excess = tl.where(others, score - row_reference[:, None], 0.0)
        partial = column_block.to(tl.int64) * rows + row
        tl.store(sums + partial, tl.sum(exponential, 1), mask=in_rows)
        tl.store(moments + partial, tl.sum(exponential * excess, 1), mask=in_rows)
        tl.store(maxima + partial, tl.max(tl.where(others, score, -float("inf")), 1), mask=in_rows)
        if excesses is not None:
            tl.store(excesses + partial, tl.sum(excess, 1), mask=in_rows)
            tl.store(counts + partial, tl.sum(others.to(tl.float32), 1), mask=in_rows)
        at = out + row.to(tl.int64)[:, None] * stride + column[None, :]
        tl.store(at, exponential.to(out.dtype.element_ty), mask=in_rows[:, None] & (column < columns)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def subtract_smoothing(
    out,
    stride,
    target,
    passage_id,
    gain,
    share,
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """``out`` becomes out * gain - share (a value for each row) in each row's other columns, and stays 0 elsewhere."""
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row = tl.program_id(0) // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_rows = row < rows
    target_column = tl.load(target + row, mask=in_rows, other=0)
    others = _others(column, columns, target_column, _ids_of_targets(target_column, passage_id), passage_id)
    at = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    others = others & in_rows[:, None]
    row_gain = tl.load(gain + row, mask=in_rows, other=0.0)
    row_share = tl.load(share + row, mask=in_rows, other=0.0)
    value = tl.load(at, mask=others, other=0.0).to(tl.float32) * row_gain[:, None] - row_share[:, None]
    tl.store(at, value.to(out.dtype.element_ty), mask=others)
