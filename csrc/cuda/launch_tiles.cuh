#pragma once

#include <cuda_runtime_api.h>

#include "cuda/chunk.h"

namespace fastdense::cuda {

// A kernel with one block a tile of the chunk.
template <typename... Arguments>
cudaError_t launch_tiles(void (*kernel)(Arguments...), const Chunk& chunk, int threads, int shared_bytes,
                         cudaStream_t stream, const Arguments&... arguments) {
  if (chunk.rows == 0 || chunk.columns == 0) return cudaSuccess;
  const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return status;
  const int64_t row_blocks = (chunk.rows + kTileRows - 1) / kTileRows;
  const int64_t column_blocks = (chunk.columns + kTileColumns - 1) / kTileColumns;
  kernel<<<static_cast<unsigned>(row_blocks * column_blocks), threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace fastdense::cuda
