// Launchers of csrc/cuda/row_epilogue.cu: plain pointers to device memory, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastdense::cuda {

// One row chunk of a problem; everything in device memory. What is computed is that of csrc/cpu.
struct RowChunk {
  float* scores;  // [rows, columns] dot products
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

// scores become d (weighted loss) / d (dot product). Every result of a row whose target is out of range is nan.
cudaError_t row_epilogue(const RowChunk& chunk, cudaStream_t stream);

}  // namespace fastdense::cuda
