#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace fastdense::cuda {

using torch::stable::Tensor;

// Operators of ops.cpp on a GPU: on the current stream, without a synchronization. chunk.h says what the tensors are.
void score_exponentials(const Tensor& query, const Tensor& passage, const Tensor& target,
                        const std::optional<Tensor>& label, const Tensor& scale, const Tensor& offset,
                        const Tensor& reference, Tensor stored, Tensor target_score, Tensor partials);
void score_maxima(const Tensor& query, const Tensor& passage, const Tensor& target, const std::optional<Tensor>& label,
                  const Tensor& scale, const Tensor& wanted, Tensor partials);
void smooth_exponentials(Tensor stored, const Tensor& target, const std::optional<Tensor>& label, const Tensor& gain,
                         const Tensor& share);

}  // namespace fastdense::cuda
