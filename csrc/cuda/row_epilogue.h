// Launchers of csrc/cuda/row_epilogue.cu: plain pointers to device memory, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastdense::cuda {

// One row chunk of a problem; everything in device memory. What it computes is that of csrc/cpu/row_kernel.inc.
struct RowChunk {
  const float* scores;  // [rows, columns] dot products
  int64_t rows;
  int64_t columns;
  const int64_t* target;      // [rows]
  const int64_t* passage_id;  // [columns], or null: nothing is left out
  const float* scale;         // []
  const float* weight;        // [rows], what the loss of each row is multiplied by
  float label_smoothing;
  // Results: [rows] each.
  float* loss;        // weighted
  float* scale_grad;  // of the weighted loss
  float* log_normalizer;
  float* target_score;
  bool* correct;
};

// gradient: [rows, columns] d (weighted loss) / d (dot product); may be chunk.scores itself. Every result of a row
// whose target is out of range is nan.
cudaError_t row_epilogue_float(const RowChunk& chunk, float* gradient, cudaStream_t stream);

// gradient: [rows, columns] bfloat16.
cudaError_t row_epilogue_bfloat16(const RowChunk& chunk, void* gradient, cudaStream_t stream);

}  // namespace fastdense::cuda
