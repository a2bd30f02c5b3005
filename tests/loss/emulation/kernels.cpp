// The kernels of csrc/cuda/exponentials.cuh on the emulated machine, for ctypes. Each returns its bank conflicts.

#include "hopper.h"
// (the machine before what is built on it)
#include "cuda/exponentials.cuh"
#include "cuda/product_choice.h"
#include "cuda/score_tile.cuh"
#include "cuda/wgmma_tile.cuh"

using namespace fastdense::cuda;

namespace {

int64_t tiles(const Chunk& chunk) { return blocks_of(chunk.rows, kTileRows) * blocks_of(chunk.columns, kTileColumns); }

Matrix matrix(const uint16_t* elements, int64_t stride, int rows, int width) {
  return {reinterpret_cast<const char*>(elements), stride * 2, rows, width};
}

Operands operands_of(const Chunk& chunk) {
  return {matrix(chunk.query, chunk.query_stride, chunk.rows, chunk.width),
          matrix(chunk.passage, chunk.passage_stride, chunk.columns, chunk.width)};
}

}  // namespace

extern "C" {

// Whether wgmma is chosen; a refusal's reason goes to a buffer of that size.
bool chooses_wgmma(const char* wanted, int major, int minor, bool built, char* refusal, int size) {
  const ProductChoice choice = choose_product(wanted, major, minor, built);
  std::snprintf(refusal, size, "%s", choice.refusal.c_str());
  return choice.wgmma;
}

// Bytes of shared memory of a block of wgmma's kernels.
int wgmma_shared_bytes() { return kWgmmaSharedBytes; }

long mma_exponentials(const Chunk* chunk, const ExponentialResults* results, bool late, bool falling) {
  return emulation::run(tiles(*chunk), kThreads, kSharedBytes, late, falling, [&] {
    const Tile tile(*chunk, block_index());
    exponentials_of_tile(*chunk, *results, tile, scores_of(*chunk, tile));
  });
}

long mma_row_maxima(const Chunk* chunk, const RowMaxima* results, bool late, bool falling) {
  return emulation::run(tiles(*chunk), kThreads, kSharedBytes, late, falling, [&] {
    const Tile tile(*chunk, block_index());
    if (is_wanted(*chunk, *results, tile)) row_maxima_of_tile(*chunk, *results, tile, scores_of(*chunk, tile));
  });
}

long wgmma_exponentials(const Chunk* chunk, const ExponentialResults* results, bool late, bool falling) {
  const Operands operands = operands_of(*chunk);
  return emulation::run(tiles(*chunk), kThreads, kWgmmaSharedBytes, late, falling, [&] {
    const Tile tile(*chunk, block_index());
    exponentials_of_tile(*chunk, *results, tile, scores_of(*chunk, tile, operands));
  });
}

long wgmma_row_maxima(const Chunk* chunk, const RowMaxima* results, bool late, bool falling) {
  const Operands operands = operands_of(*chunk);
  return emulation::run(tiles(*chunk), kThreads, kWgmmaSharedBytes, late, falling, [&] {
    const Tile tile(*chunk, block_index());
    if (is_wanted(*chunk, *results, tile)) {
      row_maxima_of_tile(*chunk, *results, tile, scores_of(*chunk, tile, operands));
    }
  });
}

long smoothing(const Chunk* chunk, const Smoothing* smoothing, bool late, bool falling) {
  return emulation::run(chunk->rows, kThreads, 0, late, falling, [&] { smooth_row(*chunk, *smoothing); });
}

}  // extern "C"
