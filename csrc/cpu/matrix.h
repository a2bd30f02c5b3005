// Float32 matrix products through torch, and the rows of a matrix of any dtype as float32.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace fastdense::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// out = a @ b. The shim's kernels are called without the dispatcher: autocast would turn a product to bfloat16.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out += a @ b
inline void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

inline Tensor rows_of(Tensor matrix, int64_t start, int64_t count) {
  return torch::stable::narrow(matrix, 0, start, count);
}

inline Tensor columns_of(Tensor matrix, int64_t start, int64_t count) {
  return torch::stable::narrow(matrix, 1, start, count);
}

inline Tensor empty_float(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Float);
}

// The rows of a matrix as contiguous float32: views where it is that already, else converted copies of few rows at a
// time, so that no copy of the whole matrix is made.
class FloatRows {
 public:
  FloatRows(const Tensor& matrix, int64_t rows_at_once)
      : matrix_(matrix),
        direct_(matrix.scalar_type() == ScalarType::Float && matrix.is_contiguous()),
        rows_at_once_(std::max<int64_t>(1, direct_ ? matrix.size(0) : std::min(rows_at_once, matrix.size(0)))) {
    if (!direct_) buffer_ = empty_float(matrix, {rows_at_once_, matrix.size(1)});
  }

  // The most rows that get() gives.
  int64_t rows_at_once() const { return rows_at_once_; }

  // Valid until the next call.
  Tensor get(int64_t start, int64_t count) {
    if (direct_) return rows_of(matrix_, start, count);
    Tensor copy = rows_of(buffer_, 0, count);
    torch::stable::copy_(copy, rows_of(matrix_, start, count));
    return copy;
  }

 private:
  Tensor matrix_;
  bool direct_;
  int64_t rows_at_once_;
  Tensor buffer_;
};

}  // namespace fastdense::cpu
