#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace fastdense::cpu {

// The operator fastdense::dropout_native: the contiguous float32 or bfloat16 input, each value times 0 with
// probability p (in [0, 1)), else times 1 / (1 - p); in float32, and rounded to bfloat16 if that is asked for. The same
// seed drops the same places, whatever the number of threads.
torch::stable::Tensor dropout(const torch::stable::Tensor& input, double p, int64_t seed, bool bfloat16);

}  // namespace fastdense::cpu
