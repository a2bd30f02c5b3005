// The rows of a [rows, width] tensor of any dtype and any strides, one at a time, as the kernels take them: contiguous,
// bfloat16 where they multiply that (then the tensor is), else float32.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "cpu/gemm/kernels.h"

namespace fastdense::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class Rows {
 public:
  Rows(const Tensor& matrix, const Kernels& kernels)
      : data_(static_cast<const char*>(matrix.data_ptr())),
        width_(matrix.size(1)),
        bytes_(matrix.scalar_type() == ScalarType::Float ? 4 : 2),
        row_stride_(matrix.stride(0) * bytes_),
        stride_(matrix.stride(1)),
        as_is_(kernels.depth == 2),
        widen_(matrix.scalar_type() == ScalarType::Half ? kernels.widen_float16 : kernels.widen_bfloat16) {}

  // Columns first .. first + count - 1, in the tensor itself or in scratch; valid until scratch is used again.
  const void* get(int64_t row, int64_t first, int64_t count, float* scratch) const {
    const char* from = data_ + row * row_stride_ + first * stride_ * bytes_;
    if (bytes_ == 4) return stride_ == 1 ? from : gathered<float>(from, count, scratch);
    const void* halves = stride_ == 1 ? from : gathered<uint16_t>(from, count, scratch + count);
    if (as_is_) return halves;
    widen_(static_cast<const uint16_t*>(halves), count, scratch);
    return scratch;
  }

  const void* get(int64_t row, float* scratch) const { return get(row, 0, width_, scratch); }

  void prefetch(int64_t row, int64_t first, int64_t count) const {
    if (stride_ != 1) return;
    const char* from = data_ + row * row_stride_ + first * bytes_;
    for (int64_t byte = 0; byte < count * bytes_; byte += 64) __builtin_prefetch(from + byte);
  }

  int64_t width() const { return width_; }

  int64_t scratch_size() const { return width_ + width_ / 2 + 1; }

 private:
  template <typename Value>
  const void* gathered(const void* from, int64_t count, void* to) const {
    const Value* values = static_cast<const Value*>(from);
    for (int64_t d = 0; d < count; ++d) static_cast<Value*>(to)[d] = values[d * stride_];
    return to;
  }

  const char* data_;
  int64_t width_;
  int64_t bytes_;
  int64_t row_stride_;  // bytes
  int64_t stride_;      // elements
  bool as_is_;          // the kernels multiply bfloat16
  void (*widen_)(const uint16_t* from, int64_t count, float* to);
};

}  // namespace fastdense::cpu
