// What becomes of a tile of scores: its exponentials and their sums, or its rows' maxima. Sums over a row leave as one
// value for each tile, which the caller adds up in order: no atomics, so the bits are the same in every run.
//
// Scores is what a thread holds of a tile, as the instructions that computed it lay it out: row blocks of 16 and column
// blocks of 8, two rows and two columns of each, four neighbouring lanes to a row (score_tile.cuh, wgmma_tile.cuh).
#pragma once

#include "cuda/tile.cuh"

namespace fastdense::cuda {

constexpr float kLowest = -INFINITY;
constexpr int kStoredRowBytes = kTileColumns * 2;
constexpr int kStoredBytes = kTileRows * kStoredRowBytes;

// Of shared memory, from its beginning.
template <typename Scores>
constexpr int kEpilogueBytes = kStoredBytes + 4 * Scores::kWarpsAcross * kTileRows * 4;

// Which of a thread's columns take part in a row beside its target.
template <typename Scores>
struct Others {
  const Chunk& chunk;
  const Tile& tile;
  // Where more than two rows need a column's label it is read once; else there are no registers for so many columns'.
  static constexpr bool kKept = Scores::kRowBlocks > 1;
  int32_t kept[kKept ? Scores::kColumnBlocks : 1][2];

  FASTDENSE_DEVICE Others(const Chunk& chunk, const Tile& tile) : chunk(chunk), tile(tile) {
#pragma unroll
    for (int j = 0; kKept && j < Scores::kColumnBlocks; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) kept[j][k] = read_label(column(j, k));
    }
  }
  FASTDENSE_DEVICE int column(int j, int k) const { return tile.first_column + Scores::column(j, k); }
  FASTDENSE_DEVICE int32_t read_label(int at) const {
    return chunk.label != nullptr && at < chunk.columns ? chunk.label[at] : 0;
  }
  FASTDENSE_DEVICE bool has(int j, int k, int target, int32_t target_label) const {
    const int at = column(j, k);
    if (at >= chunk.columns || at == target) return false;
    return chunk.label == nullptr || (kKept ? kept[j][k] : read_label(at)) != target_label;
  }
};

// A row's target and its label; a row beyond the end has the first row's.
struct Target {
  int column;
  int32_t label;

  FASTDENSE_DEVICE Target(const Chunk& chunk, int row) {
    column = chunk.target[row < chunk.rows ? row : 0];
    label = chunk.label != nullptr ? chunk.label[column] : 0;
  }
};

// Over the four lanes that share a row.
FASTDENSE_DEVICE float row_sum(float mine) {
  mine += from_lane_xor(mine, 1);
  return mine + from_lane_xor(mine, 2);
}
FASTDENSE_DEVICE float row_maximum(float mine) {
  mine = fmaxf(mine, from_lane_xor(mine, 1));
  return fmaxf(mine, from_lane_xor(mine, 2));
}

// [kinds, warps across, rows] in shared memory: what the warps beside one another have found of the same rows.
template <typename Scores>
FASTDENSE_DEVICE float& of_warp(int kind, int warp_column, int row) {
  return reinterpret_cast<float*>(shared_memory() +
                                  kStoredBytes)[(kind * Scores::kWarpsAcross + warp_column) * kTileRows + row];
}

template <typename Scores>
FASTDENSE_DEVICE float sum_of_warps(int kind, int row) {
  float sum = of_warp<Scores>(kind, 0, row);
#pragma unroll
  for (int warp = 1; warp < Scores::kWarpsAcross; ++warp) sum += of_warp<Scores>(kind, warp, row);
  return sum;
}

template <typename Scores>
FASTDENSE_DEVICE float maximum_of_warps(int kind, int row) {
  float maximum = of_warp<Scores>(kind, 0, row);
#pragma unroll
  for (int warp = 1; warp < Scores::kWarpsAcross; ++warp) maximum = fmaxf(maximum, of_warp<Scores>(kind, warp, row));
  return maximum;
}

FASTDENSE_DEVICE char* stored_piece(int row, int piece) {
  return shared_memory() + row * kStoredRowBytes + ((piece ^ (row & 7)) * 16);
}

// A thread's eight columns of one row: exponentials into shared memory, and what the row's sums get of them.
template <typename Scores>
FASTDENSE_DEVICE void exponentials_of_row(const Chunk& chunk, const ExponentialResults& results, const Tile& tile,
                                          const Others<Scores>& others, const Scores& scores, int block, int half) {
  const int local = Scores::row(block, half), row = tile.first_row + local;
  const bool in_rows = row < chunk.rows;
  const Target target(chunk, row);
  const float offset = results.offset[in_rows ? row : 0], reference = results.reference[in_rows ? row : 0];
  float largest = kLowest, sum = 0, stored_sum = 0, moment = 0;
#pragma unroll
  for (int j = 0; j < Scores::kColumnBlocks; ++j) {
    float exponential[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float score = scores.of[block][j][half * 2 + k];
      if (in_rows && others.column(j, k) == target.column) results.target_score[row] = score;
      const bool takes_part = others.has(j, k, target.column, target.label);
      exponential[k] = takes_part ? expf(score - offset) : 0.0F;
      if (takes_part) largest = fmaxf(largest, score);
      sum += exponential[k];
      moment += takes_part ? exponential[k] * (score - reference) : 0.0F;
    }
    const uint32_t rounded = two_bfloat16(exponential[0], exponential[1]);
    stored_sum += from_bits(rounded << 16) + from_bits(rounded & 0xffff0000U);
    char* piece = stored_piece(local, Scores::warp_column() * Scores::kColumnBlocks + j);
    *reinterpret_cast<uint32_t*>(piece + thread_index() % 4 * 4) = rounded;
  }
  const float found[4] = {row_maximum(largest), row_sum(sum), row_sum(stored_sum), row_sum(moment)};
  if (thread_index() % 4 == 0) {
#pragma unroll
    for (int kind = 0; kind < 4; ++kind) of_warp<Scores>(kind, Scores::warp_column(), local) = found[kind];
  }
}

// From shared memory; the last piece of a row may reach into the padding up to its stride, which gets zeros.
FASTDENSE_DEVICE void store_tile(const Chunk& chunk, const ExponentialResults& results, const Tile& tile) {
#pragma unroll
  for (int i = 0; i < kStoredBytes / 16 / kThreads; ++i) {
    const int index = i * kThreads + thread_index();
    const int local = index / (kTileColumns / kPiece), piece = index % (kTileColumns / kPiece);
    const int row = tile.first_row + local, column = tile.first_column + piece * kPiece;
    if (row < chunk.rows && column < chunk.columns) {
      *reinterpret_cast<Bytes16*>(results.stored + row * results.stride + column) =
          *reinterpret_cast<const Bytes16*>(stored_piece(local, piece));
    }
  }
}

template <typename Scores>
FASTDENSE_DEVICE void exponentials_of_tile(const Chunk& chunk, const ExponentialResults& results, const Tile& tile,
                                           const Scores& scores) {
  const Others<Scores> others(chunk, tile);
#pragma unroll
  for (int block = 0; block < Scores::kRowBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) exponentials_of_row(chunk, results, tile, others, scores, block, half);
  }
  barrier();
  store_tile(chunk, results, tile);
  const int local = thread_index(), row = tile.first_row + local;
  if (local >= kTileRows || row >= chunk.rows) return;
  const int64_t kinds_apart = blocks_of(chunk.columns, kTileColumns) * chunk.rows;
  float* partial = results.partials + static_cast<int64_t>(tile.first_column / kTileColumns) * chunk.rows + row;
  partial[0] = maximum_of_warps<Scores>(0, local);
#pragma unroll
  for (int kind = 1; kind < 4; ++kind) partial[kind * kinds_apart] = sum_of_warps<Scores>(kind, local);
}

// A thread's eight columns of one row, in row_maxima_of_tile.
template <typename Scores>
FASTDENSE_DEVICE void maximum_of_row(const Chunk& chunk, const Tile& tile, const Others<Scores>& others,
                                     const Scores& scores, int block, int half) {
  const int local = Scores::row(block, half);
  const Target target(chunk, tile.first_row + local);
  float largest = kLowest, sum = 0;
#pragma unroll
  for (int j = 0; j < Scores::kColumnBlocks; ++j) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (others.has(j, k, target.column, target.label)) largest = fmaxf(largest, scores.of[block][j][half * 2 + k]);
    }
  }
  largest = row_maximum(largest);
#pragma unroll
  for (int j = 0; j < Scores::kColumnBlocks; ++j) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {  // a score that is no number makes the sum such
      if (others.has(j, k, target.column, target.label)) sum += expf(scores.of[block][j][half * 2 + k] - largest);
    }
  }
  sum = row_sum(sum);
  if (thread_index() % 4 == 0) {
    of_warp<Scores>(0, Scores::warp_column(), local) = largest;
    of_warp<Scores>(1, Scores::warp_column(), local) = sum;
  }
}

// Whether a tile has a row whose maximum is wanted. All threads of the block ask.
FASTDENSE_DEVICE bool is_wanted(const Chunk& chunk, const RowMaxima& results, const Tile& tile) {
  const int local = thread_index(), row = tile.first_row + local;
  return any_in_block(local < kTileRows && row < chunk.rows && results.wanted[row] != 0);
}

template <typename Scores>
FASTDENSE_DEVICE void row_maxima_of_tile(const Chunk& chunk, const RowMaxima& results, const Tile& tile,
                                         const Scores& scores) {
  const Others<Scores> others(chunk, tile);
#pragma unroll
  for (int block = 0; block < Scores::kRowBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) maximum_of_row(chunk, tile, others, scores, block, half);
  }
  barrier();
  const int local = thread_index(), row = tile.first_row + local;
  if (local >= kTileRows || row >= chunk.rows) return;
  const float largest = maximum_of_warps<Scores>(0, local);
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < Scores::kWarpsAcross; ++warp) {  // a warp whose columns take no part: sum 0, largest -inf
    const float part = of_warp<Scores>(1, warp, local);
    if (part != 0) sum += part * expf(of_warp<Scores>(0, warp, local) - largest);
  }
  const int64_t at = static_cast<int64_t>(tile.first_column / kTileColumns) * chunk.rows + row;
  results.maxima[at] = largest;
  results.sums[at] = sum;
}

// One block a row.
FASTDENSE_DEVICE void smooth_row(const Chunk& chunk, const Smoothing& smoothing) {
  const int row = static_cast<int>(block_index());
  const Target target(chunk, row);
  const float gain = smoothing.gain[row], share = smoothing.share[row];
  for (int column = thread_index(); column < chunk.columns; column += kThreads) {
    if (column == target.column || (chunk.label != nullptr && chunk.label[column] == target.label)) continue;
    uint16_t& stored = smoothing.stored[row * smoothing.stride + column];
    const float value = from_bits(static_cast<uint32_t>(stored) << 16) * gain - share;
    stored = static_cast<uint16_t>(two_bfloat16(value, 0.0F));
  }
}

}  // namespace fastdense::cuda
