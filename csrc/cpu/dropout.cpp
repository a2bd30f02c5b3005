#include "cpu/dropout.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/instruction_set.h"
#include "cpu/problem.h"

namespace fastdense::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kGroupsPerThread = 256;  // less work than this is not worth waking another thread

}  // namespace

torch::stable::Tensor dropout(const torch::stable::Tensor& input, double p, int64_t seed, bool bfloat16) {
  const ScalarType dtype = bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
  torch::stable::Tensor result = torch::stable::new_empty(input, input.sizes(), dtype);
  const Kernels& kernels = choose_kernels(false);
  const bool from_bfloat16 = input.scalar_type() == ScalarType::BFloat16;
  const Dropout dropout{static_cast<uint64_t>(seed), static_cast<uint32_t>(p * 4294967296.0),
                        static_cast<float>(1 / (1 - p)), from_bfloat16, bfloat16};
  const char* from = static_cast<const char*>(input.data_ptr());
  char* to = static_cast<char*>(result.data_ptr());
  const int64_t count = input.numel(), groups = ceil_div(count, kDropoutGroup);
  torch::stable::parallel_for(0, groups, kGroupsPerThread, [&](int64_t first, int64_t last) {
    const int64_t start = first * kDropoutGroup, end = std::min(last * kDropoutGroup, count);
    kernels.drop_out(from + start * (from_bfloat16 ? 2 : 4), end - start, dropout, first,
                     to + start * (bfloat16 ? 2 : 4));
  });
  return result;
}

}  // namespace fastdense::cpu
