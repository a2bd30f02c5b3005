"""The Triton kernels: products of tiles with the softmax's work done before anything is stored.

A launch covers one chunk of rows. Each program takes tiles of [BLOCK_ROWS, BLOCK_COLUMNS] scores in turn, ordered so
that programs running at the same time share rows and columns in cache. Sums over a row are left as one value for each
block of columns, which the caller adds up in order: no atomics, so the bits are the same in every run.

A tile's scores fill most of the registers. What follows the product is therefore done slice by slice of columns.
"""

import math

import triton
import triton.language as tl

from fastdense.loss import exponentials as exponentials_contract

INTERPRETED: bool = triton.knobs.runtime.interpret  # as it was when the kernels below were decorated

ALIGNMENT = tl.constexpr(exponentials_contract.ALIGNMENT)
LOG2_E = tl.constexpr(1 / math.log(2))

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
def _dot_tile(
    query, query_stride, passage, passage_stride, first_row, first_column, rows, columns, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """A tile of dot products. Rows and columns beyond the end have some finite value, or one that lies within."""
    dot = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    row = tl.minimum(first_row + tl.arange(0, BLOCK_ROWS), rows - 1).to(tl.int64)
    column = tl.minimum(first_column + tl.arange(0, BLOCK_COLUMNS), columns - 1).to(tl.int64)
    for start in range(0, width, BLOCK_WIDTH):
        if DESCRIPTORS:
            q = query.load([first_row, start])
            p = passage.load([first_column, start])
        else:
            k = start + tl.arange(0, BLOCK_WIDTH)
            q = tl.load(query + row[:, None] * query_stride + k[None, :], mask=(k < width)[None, :], other=0.0)
            p = tl.load(passage + column[:, None] * passage_stride + k[None, :], mask=(k < width)[None, :], other=0.0)
        if INTERPRET:  # its dot misreads bfloat16
            q = q.to(tl.float32)
            p = p.to(tl.float32)
        dot = tl.dot(q, p.T, dot)
    return dot


@triton.jit
def _places(stored, stride, row, column, rows):
    """Where a tile of a matrix [rows, stride] lies, and which of it does: whole vectors of ALIGNMENT bytes.

    So up to the end of a row's storage, not of its columns. The compiler makes vectors where it sees that they fit.
    """
    UNIT: tl.constexpr = ALIGNMENT * 8 // stored.dtype.element_ty.primitive_bitwidth
    width = stride // UNIT * UNIT
    at = stored + row.to(tl.int64)[:, None] * width + column[None, :]
    return at, (row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def _stored_tile(
    scores, stride, first_row, first_column, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """A tile of dot products that are in memory already."""
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    at, mask = _places(scores, stride, row, column, rows)
    return tl.where((column < columns)[None, :], tl.load(at, mask=mask, other=0.0), 0.0)


@triton.jit
def _rounded(value, dtype: tl.constexpr, PACKED: tl.constexpr, INTERPRET: tl.constexpr):
    """To the nearest, as on a GPU."""
    if PACKED and dtype == tl.bfloat16:  # two by one instruction, where .to takes two of a slower kind
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [value], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    if INTERPRET and dtype == tl.bfloat16:  # its conversion only cuts digits off
        bits = value.to(tl.int32, bitcast=True)
        value = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def _exp(x):
    """By the instruction for powers of two; tl.exp mends its results below the normal numbers, each time."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _others(column, columns, target, target_label, label):
    """[rows, columns]: the columns that take part in a row, other than its target, which has its own label."""
    in_columns = (column < columns)[None, :]
    if label is not None:
        of_column = tl.load(label + column, mask=column < columns, other=-1)
        return in_columns & (of_column[None, :] != target_label[:, None])
    else:
        return in_columns & (column[None, :] != target[:, None])


@triton.jit
def _label_of(target, label):
    if label is not None:
        return tl.load(label + target)
    else:
        return target


@triton.jit
def _maximum_and_sum(dot, scale, first_column, columns, target, target_label, label, largest, total):
    """Take a slice into the rows' largest score and sum of exp(score - largest)."""
    column = first_column + tl.arange(0, dot.shape[1])
    others = _others(column, columns, target, target_label, label)
    score = tl.where(others, dot * scale, -float("inf"))
    both = tl.maximum(largest, tl.max(score, 1))
    reference = tl.where(both == -float("inf"), 0.0, both)  # -inf - -inf would be nan
    return both, total * _exp(largest - reference) + tl.sum(_exp(score - reference[:, None]), 1)


@triton.jit(do_not_specialize=_VARYING)
def row_maxima_and_sums(
    query, query_stride, passage, passage_stride, scores, stride, wanted, any_wanted, target, label, scale,
    maxima, sums, rows, columns, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """For each block of columns, the other columns' largest score and sum of exp(score - largest): [blocks, rows].

    A block of rows of which none is ``wanted`` (int8) is left as it was; ``any_wanted`` [1] is the largest of them, and
    most often 0. Operands as in ``exponentials``.
    """
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    tiles = row_blocks * column_blocks * tl.load(any_wanted).to(tl.int32)
    factor = tl.load(scale)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row_block, column_block = _tile_at(index, row_blocks, column_blocks, GROUP)
        first_row = row_block * BLOCK_ROWS
        first_column = column_block * BLOCK_COLUMNS
        row = first_row + tl.arange(0, BLOCK_ROWS)
        if tl.max(tl.load(wanted + row, mask=row < rows, other=0).to(tl.int32), 0) > 0:
            if scores is None:
                dot = _dot_tile(
                    query, query_stride, passage, passage_stride, first_row, first_column, rows, columns, width,
                    BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, DESCRIPTORS, INTERPRET,
                )  # fmt: skip
            else:
                dot = _stored_tile(scores, stride, first_row, first_column, rows, columns, BLOCK_ROWS, BLOCK_COLUMNS)
            target_column = tl.load(target + row, mask=row < rows, other=0)
            target_label = _label_of(target_column, label)
            largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_ROWS], tl.float32)
            HALF: tl.constexpr = BLOCK_COLUMNS // 2
            left, right = _halves(dot, BLOCK_ROWS, BLOCK_COLUMNS)
            largest, total = _maximum_and_sum(
                left, factor, first_column, columns, target_column, target_label, label, largest, total
            )
            largest, total = _maximum_and_sum(
                right, factor, first_column + HALF, columns, target_column, target_label, label, largest, total
            )
            partial = column_block.to(tl.int64) * rows + row
            tl.store(maxima + partial, largest, mask=row < rows)
            tl.store(sums + partial, total, mask=row < rows)


@triton.jit
def _together(largest, total, stored, moment, more_largest, more_total, more_stored, more_moment):
    """The sums of a row from those of two parts of it."""
    return tl.maximum(largest, more_largest), total + more_total, stored + more_stored, moment + more_moment


@triton.jit
def _exponentials_of_slice(
    dot, scale, offset, reference, others, at, mask, largest, total, stored, moment,
    PACKED: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Store the exponentials of a slice, and take it into the rows' sums. Without ``others`` all columns take part."""
    score = dot * scale
    compared, exponent = score, score - offset[:, None]
    if others is not None:
        compared = tl.where(others, compared, -float("inf"))
        exponent = tl.where(others, exponent, -float("inf"))
    exponential = _exp(exponent)
    rounded = _rounded(exponential, at.dtype.element_ty, PACKED, INTERPRET)
    tl.store(at, rounded, mask=mask)
    of_reference = exponential * (score - reference[:, None])
    sums = tl.reduce((compared, exponential, rounded.to(tl.float32), of_reference), 1, _together)
    return _together(largest, total, stored, moment, *sums)


@triton.jit(do_not_specialize=_VARYING)
def exponentials(
    query, query_stride, passage, passage_stride, scores, stride, target, label, scale, offset, reference, out,
    target_score, maxima, sums, stored_sums, moments, rows, columns, width,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PACKED: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """exp(score - offset) of each row's other columns, and 0 elsewhere, into ``out`` [rows, stride].

    ``query`` [rows, width] and ``passage`` [columns, width] are descriptors or pointers; or ``scores`` [rows, stride]
    holds their product (``out`` may be the same). ``target`` [rows] and ``label`` [columns] are int32: columns with
    the label of a row's target take no part in the row.

    For each block of columns also, [blocks, rows]: the largest score, the sum of the exponentials, that of what ``out``
    holds of them, and that of the exponentials times (score - reference). ``target_score`` gets the score of the target
    from this same product, so that it compares with equal columns as equal.
    """
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    factor = tl.load(scale)
    QUARTER: tl.constexpr = BLOCK_COLUMNS // 4
    for index in tl.range(tl.program_id(0), row_blocks * column_blocks, tl.num_programs(0)):
        row_block, column_block = _tile_at(index, row_blocks, column_blocks, GROUP)
        first_row = row_block * BLOCK_ROWS
        first_column = column_block * BLOCK_COLUMNS
        if scores is None:
            dot = _dot_tile(
                query, query_stride, passage, passage_stride, first_row, first_column, rows, columns, width,
                BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_WIDTH, DESCRIPTORS, INTERPRET,
            )  # fmt: skip
        else:
            dot = _stored_tile(scores, stride, first_row, first_column, rows, columns, BLOCK_ROWS, BLOCK_COLUMNS)
        row = first_row + tl.arange(0, BLOCK_ROWS)
        in_rows = row < rows
        row_offset = tl.load(offset + row, mask=in_rows, other=0.0)
        row_reference = tl.load(reference + row, mask=in_rows, other=0.0)
        row_target = tl.load(target + row, mask=in_rows, other=0)
        target_label = _label_of(row_target, label)
        here = in_rows & (row_target >= first_column) & (row_target < first_column + BLOCK_COLUMNS)
        holds_target = tl.max(here.to(tl.int32), 0) > 0
        # Of nearly all tiles every column takes part in every row, and masks would be half of what there is to do.
        whole = (first_row + BLOCK_ROWS <= rows) & (first_column + BLOCK_COLUMNS <= columns) & (not holds_target)
        largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        stored, moment = total, total
        left, right = _halves(dot, BLOCK_ROWS, BLOCK_COLUMNS)
        first, second = _halves(left, BLOCK_ROWS, BLOCK_COLUMNS // 2)
        third, fourth = _halves(right, BLOCK_ROWS, BLOCK_COLUMNS // 2)
        quarters = (first, second, third, fourth)
        if label is None and whole:
            for i in tl.static_range(4):
                column = first_column + i * QUARTER + tl.arange(0, QUARTER)
                at, _ = _places(out, stride, row, column, rows)
                largest, total, stored, moment = _exponentials_of_slice(
                    quarters[i], factor, row_offset, row_reference, None, at, None,
                    largest, total, stored, moment, PACKED, INTERPRET,
                )  # fmt: skip
        else:
            of_target = tl.zeros([BLOCK_ROWS], tl.float32)
            for i in tl.static_range(4):
                column = first_column + i * QUARTER + tl.arange(0, QUARTER)
                at, mask = _places(out, stride, row, column, rows)
                others = _others(column, columns, row_target, target_label, label)
                if holds_target:
                    is_target = column[None, :] == row_target[:, None]
                    of_target += tl.sum(tl.where(is_target, quarters[i] * factor, 0.0), 1)
                largest, total, stored, moment = _exponentials_of_slice(
                    quarters[i], factor, row_offset, row_reference, others, at, mask,
                    largest, total, stored, moment, PACKED, INTERPRET,
                )  # fmt: skip
            tl.store(target_score + row, of_target, mask=here)
        partial = column_block.to(tl.int64) * rows + row
        tl.store(maxima + partial, largest, mask=in_rows)
        tl.store(sums + partial, total, mask=in_rows)
        tl.store(stored_sums + partial, stored, mask=in_rows)
        tl.store(moments + partial, moment, mask=in_rows)


@triton.jit(do_not_specialize=_VARYING)
def subtract_smoothing(
    out, stride, target, label, gain, share, rows, columns,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PACKED: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """``out`` becomes out * gain - share (a value for each row) in each row's other columns, and stays 0 elsewhere."""
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    row = tl.program_id(0) // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_rows = row < rows
    row_target = tl.load(target + row, mask=in_rows, other=0)
    others = _others(column, columns, row_target, _label_of(row_target, label), label)
    at, mask = _places(out, stride, row, column, rows)
    row_gain = tl.load(gain + row, mask=in_rows, other=0.0)
    row_share = tl.load(share + row, mask=in_rows, other=0.0)
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32) * row_gain[:, None] - row_share[:, None]
    rounded = _rounded(tl.where(others, value, 0.0), out.dtype.element_ty, PACKED, INTERPRET)
    tl.store(at, rounded, mask=mask)
