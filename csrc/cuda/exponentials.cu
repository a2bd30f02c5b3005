#include <cmath>

#include "cuda/ampere.cuh"
// (the machine before what is built on it)
#include "cuda/exponentials.cuh"
#include "cuda/exponentials.h"

namespace fastdense::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) exponentials_kernel(Chunk chunk, ExponentialResults results) {
  exponentials_of_tile(chunk, results);
}

__global__ void __launch_bounds__(kThreads) row_maxima_kernel(Chunk chunk, RowMaxima results) {
  row_maxima_of_tile(chunk, results);
}

__global__ void __launch_bounds__(kThreads) smoothing_kernel(Chunk chunk, Smoothing smoothing) {
  smooth_row(chunk, smoothing);
}

template <typename Results>
cudaError_t launch_tiles(void (*kernel)(Chunk, Results), const Chunk& chunk, const Results& results,
                         cudaStream_t stream) {
  if (chunk.rows == 0 || chunk.columns == 0) return cudaSuccess;
  const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const int64_t row_blocks = (chunk.rows + kTileRows - 1) / kTileRows;
  const int64_t column_blocks = (chunk.columns + kTileColumns - 1) / kTileColumns;
  kernel<<<static_cast<unsigned>(row_blocks * column_blocks), kThreads, kSharedBytes, stream>>>(chunk, results);
  return cudaGetLastError();
}

}  // namespace

cudaError_t exponentials(const Chunk& chunk, const ExponentialResults& results, cudaStream_t stream) {
  return launch_tiles(exponentials_kernel, chunk, results, stream);
}

cudaError_t row_maxima_and_sums(const Chunk& chunk, const RowMaxima& results, cudaStream_t stream) {
  return launch_tiles(row_maxima_kernel, chunk, results, stream);
}

cudaError_t subtract_smoothing(const Chunk& chunk, const Smoothing& smoothing, cudaStream_t stream) {
  if (chunk.rows > 0) smoothing_kernel<<<static_cast<unsigned>(chunk.rows), kThreads, 0, stream>>>(chunk, smoothing);
  return cudaGetLastError();
}

}  // namespace fastdense::cuda
