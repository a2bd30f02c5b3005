#include "cpu/dropout.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/instruction_set.h"
#include "cpu/problem.h"

namespace fastdense::cpu {
namespace {

constexpr int64_t kGroupsPerThread = 256;  // less work than this is not worth waking another thread

}  // namespace

torch::stable::Tensor dropout(const torch::stable::Tensor& input, double p, int64_t seed) {
  torch::stable::Tensor result = torch::stable::empty_like(input);
  const Kernels& kernels = choose_kernels(false);
  const Dropout dropout{static_cast<uint64_t>(seed), static_cast<uint32_t>(p * 4294967296.0),
                        static_cast<float>(1 / (1 - p))};
  const float* from = static_cast<const float*>(input.data_ptr());
  float* to = static_cast<float*>(result.data_ptr());
  const int64_t count = input.numel(), groups = ceil_div(count, kDropoutGroup);
  torch::stable::parallel_for(0, groups, kGroupsPerThread, [&](int64_t first, int64_t last) {
    const int64_t start = first * kDropoutGroup, end = std::min(last * kDropoutGroup, count);
    kernels.drop_out(from + start, end - start, dropout, first, to + start);
  });
  return result;
}

}  // namespace fastdense::cpu
