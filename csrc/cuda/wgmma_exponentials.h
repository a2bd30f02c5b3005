// Launchers of csrc/cuda/wgmma_exponentials.cu, for compute capability 9.0 only: as in exponentials.h.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/chunk.h"

namespace fastdense::cuda {

cudaError_t exponentials_by_wgmma(const Chunk& chunk, const ExponentialResults& results, cudaStream_t stream);
cudaError_t row_maxima_and_sums_by_wgmma(const Chunk& chunk, const RowMaxima& results, cudaStream_t stream);

}  // namespace fastdense::cuda
