// The rows of a [rows, width] tensor of any dtype and any strides, one at a time, as contiguous float32.
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
  const float* get(int64_t row, int64_t first, int64_t count, float* scratch) const {
    const char* from = data_ + row * row_stride_ + first * stride_ * bytes_;
    if (bytes_ == 4) {
      const float* values = reinterpret_cast<const float*>(from);
      return stride_ == 1 ? values : gathered(values, count, scratch);
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
    if (stride_ != 1) halves = gathered(halves, count, reinterpret_cast<uint16_t*>(scratch + count));
    widen_(halves, count, scratch);
    return scratch;
  }

  const float* get(int64_t row, float* scratch) const { return get(row, 0, width_, scratch); }

  // The same as kernels pack it: bfloat16 where they multiply that, else float32.
  const void* packable(int64_t row, int64_t first, int64_t count, float* scratch) const {
    if (!as_is_) return get(row, first, count, scratch);
    const char* from = data_ + row * row_stride_ + first * stride_ * bytes_;
    if (stride_ == 1) return from;
    return gathered(reinterpret_cast<const uint16_t*>(from), count, reinterpret_cast<uint16_t*>(scratch));
  }

  void prefetch(int64_t row, int64_t first, int64_t count) const {
    if (stride_ != 1) return;
    const char* from = data_ + row * row_stride_ + first * bytes_;
    for (int64_t byte = 0; byte < count * bytes_; byte += 64) __builtin_prefetch(from + byte);
  }

  int64_t width() const { return width_; }

  int64_t scratch_size() const { return width_ + width_ / 2 + 1; }

 private:
  template <typename Value>
  const Value* gathered(const Value* from, int64_t count, Value* to) const {
    for (int64_t d = 0; d < count; ++d) to[d] = from[d * stride_];
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
