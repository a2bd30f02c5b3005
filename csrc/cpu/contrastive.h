#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace fastdense::cpu {

using torch::stable::Tensor;

// loss [], query_grad [N, D] or [0], passage_grad [M, D] or [0], scale_grad []; and, if asked for, the by-products:
// log_normalizer [N], target_score [N], correct [N], hardest_index [N, hardest], hardest_score [N, hardest]. All
// float32 but for correct, which is bool, and hardest_index, which is int64.
using ContrastiveResult = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

// The operator fastdense::contrastive_native on the CPU; fastdense/loss/operator.py holds its schema.
//
// query [N, D] and passage [M, D]: float32, bfloat16 or float16, any strides. target [N], passage_id [M]: int64.
// scale [], weight [N]: float32.
ContrastiveResult contrastive(const Tensor& query, const Tensor& passage, const Tensor& target, const Tensor& scale,
                              const std::optional<Tensor>& passage_id, const std::optional<Tensor>& weight,
                              double label_smoothing, bool symmetric, bool mean, bool query_grad, bool passage_grad,
                              int64_t hardest, int64_t chunk_bytes, bool by_products);

}  // namespace fastdense::cpu
