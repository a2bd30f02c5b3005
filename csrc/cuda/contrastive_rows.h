#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace fastdense::cuda {

using torch::stable::Tensor;

// The operator fastdense::contrastive_rows_ on a GPU: one chunk of rows, on the current stream, without a
// synchronization. ops.cpp holds its schema; row_epilogue.h says what the tensors are.
void contrastive_rows(Tensor scores, const Tensor& target, const Tensor& scale, const std::optional<Tensor>& passage_id,
                      const Tensor& weight, double label_smoothing, Tensor loss, Tensor scale_grad,
                      Tensor log_normalizer, Tensor target_score, Tensor correct);

}  // namespace fastdense::cuda
