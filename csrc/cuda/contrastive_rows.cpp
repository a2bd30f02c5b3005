#include "cuda/contrastive_rows.h"

#include <torch/csrc/stable/accelerator.h>

#include "cuda/row_epilogue.h"
#include "cuda/stream.h"

namespace fastdense::cuda {
void contrastive_rows(Tensor scores, const Tensor& target, const Tensor& scale, const std::optional<Tensor>& passage_id,
                      const Tensor& weight, double label_smoothing, Tensor loss, Tensor scale_grad,
                      Tensor log_normalizer, Tensor target_score, Tensor correct) {
  STD_TORCH_CHECK(scores.is_contiguous() && target.is_contiguous(),
                  "contrastive_rows_: scores and target must be contiguous");
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  RowChunk chunk{};
  chunk.scores = scores.mutable_data_ptr<float>();
  chunk.rows = scores.size(0);
  chunk.columns = scores.size(1);
  chunk.target = target.const_data_ptr<int64_t>();
  chunk.passage_id = passage_id ? passage_id->const_data_ptr<int64_t>() : nullptr;
  chunk.scale = scale.const_data_ptr<float>();
  chunk.weight = weight.const_data_ptr<float>();
  chunk.label_smoothing = static_cast<float>(label_smoothing);
  chunk.loss = loss.mutable_data_ptr<float>();
  chunk.scale_grad = scale_grad.mutable_data_ptr<float>();
  chunk.log_normalizer = log_normalizer.mutable_data_ptr<float>();
  chunk.target_score = target_score.mutable_data_ptr<float>();
  chunk.correct = correct.mutable_data_ptr<bool>();

  const cudaError_t status = row_epilogue(chunk, current_stream(scores.get_device_index()));
  STD_TORCH_CHECK(status == cudaSuccess, "contrastive_rows_: ", cudaGetErrorString(status));
}

}  // namespace fastdense::cuda
