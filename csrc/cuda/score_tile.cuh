// A tile of 128 x 128 scores by one block of threads: operands arrive asynchronously, three steps of 64 ahead in shared
// memory; eight warps hold 64 x 32 scores each. To be included after a file with the machine's functions (ampere.cuh).
//
// Shared memory holds rows of 128 bytes. Their 16-byte pieces are permuted by row, so that neither the copies nor
// load_matrices, which reads one piece of each of eight rows at once, meet in a bank.
#pragma once

#include "cuda/tile.cuh"

namespace fastdense::cuda {

constexpr int kStages = 3;
constexpr int kSharedBytes = kStages * kStageBytes;
constexpr int kWarpRows = 64;
constexpr int kWarpColumns = 32;

// A thread's part of a tile: two columns in each of four blocks of 8, two rows in each of four blocks of 16.
struct Scores {
  static constexpr int kWarpsAcross = kTileColumns / kWarpColumns;
  static constexpr int kRowBlocks = kWarpRows / 16;       // of a warp, of multiply_add
  static constexpr int kColumnBlocks = kWarpColumns / 8;  // likewise
  static_assert(kTileRows / kWarpRows * kWarpsAcross * kWarp == kThreads);

  float of[kRowBlocks][kColumnBlocks][4];

  FASTDENSE_DEVICE static int row(int block, int half) {
    return thread_index() / kWarp / kWarpsAcross * kWarpRows + block * 16 + half * 8 + thread_index() % kWarp / 4;
  }
  FASTDENSE_DEVICE static int warp_column() { return thread_index() / kWarp % kWarpsAcross; }
  FASTDENSE_DEVICE static int column(int block, int of_two) {
    return warp_column() * kWarpColumns + block * 8 + thread_index() % 4 * 2 + of_two;
  }
};

FASTDENSE_DEVICE char* piece_at(char* operand, int row, int piece) {
  return operand + row * kRowBytes + ((piece ^ (row & 7)) * 16);
}

// Begin to copy the elements [k, k + 64) of 128 rows; zeros beyond the end.
FASTDENSE_DEVICE void copy_operand(char* to, const uint16_t* from, int64_t stride, int first, int rows, int k,
                                   int width) {
#pragma unroll
  for (int i = 0; i < kOperandBytes / 16 / kThreads; ++i) {
    const int index = i * kThreads + thread_index();
    const int row = index / (kStepWidth / kPiece), piece = index % (kStepWidth / kPiece);
    const bool valid = first + row < rows && k + piece * kPiece < width;
    copy_16_bytes(piece_at(to, row, piece), valid ? from + (first + row) * stride + k + piece * kPiece : from, valid);
  }
}

FASTDENSE_DEVICE void copy_step(const Chunk& chunk, const Tile& tile, int step) {
  char* stage = shared_memory() + step % kStages * kStageBytes;
  const int k = step * kStepWidth;
  copy_operand(stage, chunk.query, chunk.query_stride, tile.first_row, chunk.rows, k, chunk.width);
  copy_operand(stage + kOperandBytes, chunk.passage, chunk.passage_stride, tile.first_column, chunk.columns, k,
               chunk.width);
}

FASTDENSE_DEVICE void multiply_step(Scores& scores, int step) {
  char* query = shared_memory() + step % kStages * kStageBytes;
  char* passage = query + kOperandBytes;
  const int lane = thread_index() % kWarp;
  const int first_row = Scores::row(0, 0) - lane / 4, first_column = Scores::warp_column() * kWarpColumns;
#pragma unroll
  for (int piece = 0; piece < kStepWidth / kPiece; piece += 2) {
    uint32_t a[Scores::kRowBlocks][4], b[Scores::kColumnBlocks / 2][4];
#pragma unroll
    for (int i = 0; i < Scores::kRowBlocks;
         ++i) {  // matrices: rows 0-7 and 8-15 of the first piece, then of the second
      load_matrices(a[i], piece_at(query, first_row + i * 16 + lane % 16, piece + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < Scores::kColumnBlocks / 2; ++j) {  // both pieces of columns 0-7, then of columns 8-15
      load_matrices(b[j], piece_at(passage, first_column + j * 16 + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < Scores::kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < Scores::kColumnBlocks; ++j) {
        multiply_add(scores.of[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// All dot products of a tile, times the scale. Rows and columns beyond the end have 0. Afterwards shared memory is
// free.
FASTDENSE_DEVICE Scores scores_of(const Chunk& chunk, const Tile& tile) {
  Scores scores{};
  const int steps = steps_of(chunk);
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) copy_step(chunk, tile, step);
    close_copy_group();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    barrier();  // everyone's copies for this step are there, and nobody reads what the next one overwrites
    if (step + kStages - 1 < steps) copy_step(chunk, tile, step + kStages - 1);
    close_copy_group();  // an empty group at the end: the wait counts groups
    multiply_step(scores, step);
  }
  barrier();
  multiply(scores, *chunk.scale);
  return scores;
}

}  // namespace fastdense::cuda
