// Launchers of csrc/cuda/exponentials.cu: plain pointers to device memory, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/chunk.h"

namespace fastdense::cuda {

cudaError_t exponentials(const Chunk& chunk, const ExponentialResults& results, cudaStream_t stream);
cudaError_t row_maxima_and_sums(const Chunk& chunk, const RowMaxima& results, cudaStream_t stream);
cudaError_t subtract_smoothing(const Chunk& chunk, const Smoothing& smoothing, cudaStream_t stream);

}  // namespace fastdense::cuda
