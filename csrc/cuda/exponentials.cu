#include <cmath>

#include "cuda/ampere.cuh"
// (the machine before what is built on it)
#include "cuda/exponentials.cuh"
#include "cuda/exponentials.h"
#include "cuda/launch_tiles.cuh"
#include "cuda/score_tile.cuh"

namespace fastdense::cuda {
namespace {

static_assert(kEpilogueBytes<Scores> <= kSharedBytes);

__global__ void __launch_bounds__(kThreads) exponentials_kernel(Chunk chunk, ExponentialResults results) {
  const Tile tile(chunk, block_index());
  exponentials_of_tile(chunk, results, tile, scores_of(chunk, tile));
}

__global__ void __launch_bounds__(kThreads) row_maxima_kernel(Chunk chunk, RowMaxima results) {
  const Tile tile(chunk, block_index());
  if (is_wanted(chunk, results, tile)) row_maxima_of_tile(chunk, results, tile, scores_of(chunk, tile));
}

__global__ void __launch_bounds__(kThreads) smoothing_kernel(Chunk chunk, Smoothing smoothing) {
  smooth_row(chunk, smoothing);
}

}  // namespace

cudaError_t exponentials(const Chunk& chunk, const ExponentialResults& results, cudaStream_t stream) {
  return launch_tiles(exponentials_kernel, chunk, kThreads, kSharedBytes, stream, chunk, results);
}

cudaError_t row_maxima_and_sums(const Chunk& chunk, const RowMaxima& results, cudaStream_t stream) {
  return launch_tiles(row_maxima_kernel, chunk, kThreads, kSharedBytes, stream, chunk, results);
}

cudaError_t subtract_smoothing(const Chunk& chunk, const Smoothing& smoothing, cudaStream_t stream) {
  if (chunk.rows > 0) smoothing_kernel<<<static_cast<unsigned>(chunk.rows), kThreads, 0, stream>>>(chunk, smoothing);
  return cudaGetLastError();
}

}  // namespace fastdense::cuda
