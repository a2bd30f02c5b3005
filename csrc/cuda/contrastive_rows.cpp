#include "cuda/contrastive_rows.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/row_epilogue.h"

namespace fastdense::cuda {
namespace {

// torch's own current stream. The function lies in libtorch_cuda, which this library must not need in order to load
// beside a CPU build of torch; where a CUDA tensor exists, libtorch_cuda is in the process.
cudaStream_t current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function != nullptr, "libtorch_cuda.so is not loaded, or has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

void contrastive_rows(const Tensor& scores, Tensor gradient, const Tensor& target, const Tensor& scale,
                      const std::optional<Tensor>& passage_id, const Tensor& weight, double label_smoothing,
                      Tensor loss, Tensor scale_grad, Tensor log_normalizer, Tensor target_score, Tensor correct) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(scores.is_contiguous() && gradient.is_contiguous() && target.is_contiguous(),
                  "contrastive_rows_: scores, gradient and target must be contiguous");
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  RowChunk chunk{};
  chunk.scores = scores.const_data_ptr<float>();
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

  const cudaStream_t stream = current_stream(scores.get_device_index());
  const cudaError_t status = gradient.scalar_type() == ScalarType::BFloat16
                                 ? row_epilogue_bfloat16(chunk, gradient.mutable_data_ptr(), stream)
                                 : row_epilogue_float(chunk, gradient.mutable_data_ptr<float>(), stream);
  STD_TORCH_CHECK(status == cudaSuccess, "contrastive_rows_: ", cudaGetErrorString(status));
}

}  // namespace fastdense::cuda
