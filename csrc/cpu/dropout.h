#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fastdense::cpu {

// The operator fastdense::dropout_native: the contiguous float32 input, each value times 0 with probability p (in
// [0, 1)), else times 1 / (1 - p). The same seed drops the same places, whatever the number of threads.
torch::stable::Tensor dropout(const torch::stable::Tensor& input, double p, int64_t seed);

}  // namespace fastdense::cpu
