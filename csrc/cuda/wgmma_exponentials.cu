// The kernels of exponentials.cu for compute capability 9.0. They are empty in the code for others, where the launchers
// of wgmma_exponentials.h must not be called.
#include <cuda.h>

#include <cmath>

#include "cuda/hopper.cuh"
// (the machine before what is built on it)
#include "cuda/exponentials.cuh"
#include "cuda/launch_tiles.cuh"
#include "cuda/wgmma_exponentials.h"
#include "cuda/wgmma_tile.cuh"

namespace fastdense::cuda {
namespace {

static_assert(kEpilogueBytes<WgmmaScores> <= kWgmmaSharedBytes);

// Two blocks of a multiprocessor, or the exponentials of one would leave the tensor cores idle.
__global__ void __launch_bounds__(kThreads, 2)
    wgmma_exponentials(Chunk chunk, ExponentialResults results, const __grid_constant__ Operands operands) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Tile tile(chunk, block_index());
  exponentials_of_tile(chunk, results, tile, scores_of(chunk, tile, operands));
#endif
}

__global__ void __launch_bounds__(kThreads, 2)
    wgmma_row_maxima(Chunk chunk, RowMaxima results, const __grid_constant__ Operands operands) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Tile tile(chunk, block_index());
  if (is_wanted(chunk, results, tile)) row_maxima_of_tile(chunk, results, tile, scores_of(chunk, tile, operands));
#endif
}

// The driver's function, found when it is first needed: this library must load where there is no driver.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult answer{};
    const auto status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &answer);
    if (status != cudaSuccess || answer != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return found;
}

cudaError_t describe(Matrix& matrix, const uint16_t* elements, int64_t stride, int rows, int width) {
  if (encoder() == nullptr) return cudaErrorCallRequiresNewerDriver;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {kStepWidth, kTileRows}, every[2] = {1, 1};
  const CUresult status =
      encoder()(&matrix, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(elements), sizes, row_bytes, box,
                every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Results>
cudaError_t launch(void (*kernel)(Chunk, Results, Operands), const Chunk& chunk, const Results& results,
                   cudaStream_t stream) {
  if (chunk.rows == 0 || chunk.columns == 0) return cudaSuccess;
  Operands operands;
  auto status = describe(operands.query, chunk.query, chunk.query_stride, chunk.rows, chunk.width);
  if (status != cudaSuccess) return status;
  status = describe(operands.passage, chunk.passage, chunk.passage_stride, chunk.columns, chunk.width);
  if (status != cudaSuccess) return status;
  return launch_tiles(kernel, chunk, kThreads, kWgmmaSharedBytes, stream, chunk, results, operands);
}

}  // namespace

cudaError_t exponentials_by_wgmma(const Chunk& chunk, const ExponentialResults& results, cudaStream_t stream) {
  return launch(wgmma_exponentials, chunk, results, stream);
}

cudaError_t row_maxima_and_sums_by_wgmma(const Chunk& chunk, const RowMaxima& results, cudaStream_t stream) {
  return launch(wgmma_row_maxima, chunk, results, stream);
}

}  // namespace fastdense::cuda
