#include "cuda/stream.h"

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

namespace fastdense::cuda {

// The function lies in libtorch_cuda, which this library must not need in order to load beside a CPU build of torch;
// where a CUDA tensor exists, libtorch_cuda is in the process.
cudaStream_t current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function != nullptr, "libtorch_cuda.so is not loaded, or has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fastdense::cuda
