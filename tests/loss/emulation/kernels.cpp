// The kernels of csrc/cuda/exponentials.cuh on the emulated machine, for ctypes. Each returns its bank conflicts.

#include "machine.h"
// (the machine before what is built on it)
#include "cuda/exponentials.cuh"

using namespace fastdense::cuda;

namespace {

int64_t tiles(const Chunk& chunk) { return blocks_of(chunk.rows, kTileRows) * blocks_of(chunk.columns, kTileColumns); }

}  // namespace

extern "C" {

long emulated_exponentials(const Chunk* chunk, const ExponentialResults* results, bool late, bool falling) {
  return emulation::run(tiles(*chunk), kThreads, kSharedBytes, late, falling,
                        [&] { exponentials_of_tile(*chunk, *results); });
}

long emulated_row_maxima(const Chunk* chunk, const RowMaxima* results, bool late, bool falling) {
  return emulation::run(tiles(*chunk), kThreads, kSharedBytes, late, falling,
                        [&] { row_maxima_of_tile(*chunk, *results); });
}

long emulated_smoothing(const Chunk* chunk, const Smoothing* smoothing, bool late, bool falling) {
  return emulation::run(chunk->rows, kThreads, 0, late, falling, [&] { smooth_row(*chunk, *smoothing); });
}

}  // extern "C"
