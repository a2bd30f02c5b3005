// Tiles of scores, whichever instructions compute them: where they lie, and in what steps their operands come.
// To be included after a file with the machine's functions (ampere.cuh).
#pragma once

#include "cuda/chunk.h"

namespace fastdense::cuda {

constexpr int kThreads = 256;  // that hold a tile's scores
constexpr int kWarp = 32;
constexpr int kStepWidth = 64;
constexpr int kPiece = 8;  // elements of 16 bytes
constexpr int kRowBytes = kStepWidth * 2;
constexpr int kOperandBytes = kTileRows * kRowBytes;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kGroup = 8;  // blocks of rows whose tiles run together
static_assert(kTileRows == kTileColumns);

FASTDENSE_DEVICE int64_t blocks_of(int count, int size) { return (count + size - 1) / size; }

// The first row and column of the index-th tile: down kGroup blocks of rows, then on to the next columns.
struct Tile {
  int first_row;
  int first_column;

  FASTDENSE_DEVICE Tile(const Chunk& chunk, int64_t index) {
    const int64_t row_blocks = blocks_of(chunk.rows, kTileRows), column_blocks = blocks_of(chunk.columns, kTileColumns);
    const int64_t group = index / (kGroup * column_blocks), within = index % (kGroup * column_blocks);
    const int64_t left = row_blocks - group * kGroup, size = left < kGroup ? left : kGroup;
    first_row = static_cast<int>((group * kGroup + within % size) * kTileRows);
    first_column = static_cast<int>(within / size * kTileColumns);
  }
};

FASTDENSE_DEVICE int steps_of(const Chunk& chunk) { return (chunk.width + kStepWidth - 1) / kStepWidth; }

template <typename Scores>
FASTDENSE_DEVICE void multiply(Scores& scores, float scale) {
#pragma unroll
  for (int i = 0; i < Scores::kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < Scores::kColumnBlocks; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) scores.of[i][j][k] *= scale;
    }
  }
}

}  // namespace fastdense::cuda
