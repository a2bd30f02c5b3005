#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace fastdense::cpu {

using torch::stable::Tensor;

// loss [], query_grad [N, D] or [0], passage_grad [M, D] or [0], scale_grad [], log_normalizer [N], target_score [N],
// correct [N]; float32 but for the last, which is bool.
using ContrastiveResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The operator fastdense::contrastive_native on the CPU; fastdense/loss/operator.py holds its schema.
//
// query [N, D] and passage [M, D]: float32, bfloat16 or float16, any strides. target [N], passage_id [M]: int64.
// scale [], weight [N]: float32.
ContrastiveResult contrastive(const Tensor& query, const Tensor& passage, const Tensor& target, const Tensor& scale,
                              const std::optional<Tensor>& passage_id, const std::optional<Tensor>& weight,
                              double label_smoothing, bool mean, bool query_grad, bool passage_grad,
                              int64_t chunk_bytes);

}  // namespace fastdense::cpu
