// Loss and gradients in one pass over row chunks:
//
//   scores = query[rows] @ passage.T             chunk [rows, M], the only large buffer
//   row kernel: scores -> gradient, in place     see row_kernel.inc
//   query_grad[rows] = gradient @ passage
//   passage_grad += gradient.T @ query[rows]
//
// Passages that are not contiguous float32 are converted a tile at a time, so that no copy of all of them is made.

#include "cpu/contrastive.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/instruction_set.h"

namespace fastdense::cpu {
namespace {

using torch::headeronly::ScalarType;
namespace stable = torch::stable;

constexpr int64_t kTileBytes = int64_t{8} << 20;

// The shim's kernels are called without the dispatcher: under autocast it would turn these products to bfloat16.
void multiply(Tensor out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

void multiply_add(Tensor out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

Tensor rows_of(const Tensor& matrix, int64_t start, int64_t count) {
  Tensor view = matrix;
  return stable::narrow(view, 0, start, count);
}

Tensor columns_of(const Tensor& matrix, int64_t start, int64_t count) {
  Tensor view = matrix;
  return stable::narrow(view, 1, start, count);
}

Tensor empty_float(const Tensor& like, std::initializer_list<int64_t> shape) {
  return stable::new_empty(like, shape, ScalarType::Float);
}

// The rows of a matrix as contiguous float32: the matrix itself where it is that, else a converted copy of a few rows.
class FloatRows {
 public:
  FloatRows(const Tensor& matrix, int64_t tile_rows)
      : matrix_(matrix), direct_(matrix.scalar_type() == ScalarType::Float && matrix.is_contiguous()) {
    tile_rows_ = direct_ ? matrix.size(0) : std::min(tile_rows, matrix.size(0));
    if (!direct_) buffer_ = empty_float(matrix, {tile_rows_, matrix.size(1)});
  }

  // At most this many rows may be asked for at once.
  int64_t tile_rows() const { return tile_rows_; }

  // Valid until the next call.
  Tensor get(int64_t start, int64_t count) {
    if (direct_) return rows_of(matrix_, start, count);
    Tensor copy = rows_of(buffer_, 0, count);
    stable::copy_(copy, rows_of(matrix_, start, count));
    return copy;
  }

 private:
  Tensor matrix_;
  bool direct_;
  int64_t tile_rows_;
  Tensor buffer_;
};

// Everything of the rows' results; vectors of N values.
struct RowOutputs {
  std::vector<float> loss, scale_grad;
  float* log_normalizer;
  float* target_score;
  bool* correct;
};

void check_targets(const int64_t* target, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(target[i] >= 0 && target[i] < columns, "target must lie in [0, ", columns, "), got ", target[i],
                    " in row ", i);
  }
}

// What the loss of each row is multiplied by; all zeros where the weights' sum is zero.
std::vector<float> row_weights(const std::optional<Tensor>& weight, int64_t rows, bool mean) {
  std::vector<float> weights(rows, 1.0F);
  if (weight.has_value()) std::copy_n(weight->const_data_ptr<float>(), rows, weights.begin());
  if (!mean) return weights;
  double total = 0;
  for (float value : weights) total += value;
  for (float& value : weights) value = total > 0 ? static_cast<float>(value / total) : 0.0F;
  return weights;
}

void run_rows(const Tensor& scores, int64_t first_row, const int64_t* target, const std::vector<float>& weights,
              const RowShared& shared, RowOutputs& outputs) {
  float* data = scores.mutable_data_ptr<float>();
  const RowKernel kernel = row_kernel();
  const int64_t grain = std::max<int64_t>(1, 32768 / shared.columns);
  stable::parallel_for(0, scores.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = first_row + r;
      const RowResult result = kernel(data + r * shared.columns, target[i], weights[i], shared);
      outputs.loss[i] = result.loss;
      outputs.scale_grad[i] = result.scale_grad;
      outputs.log_normalizer[i] = result.log_normalizer;
      outputs.target_score[i] = result.target_score;
      outputs.correct[i] = result.correct;
    }
  });
}

template <typename Step>
void for_each_range(int64_t size, int64_t step, Step body) {
  for (int64_t start = 0; start < size; start += step) body(start, std::min(step, size - start));
}

}  // namespace

ContrastiveResult contrastive(const Tensor& query, const Tensor& passage, const Tensor& target, const Tensor& scale,
                              const std::optional<Tensor>& passage_id, const std::optional<Tensor>& weight,
                              double label_smoothing, bool mean, bool query_grad, bool passage_grad,
                              int64_t chunk_bytes) {
  const int64_t rows = query.size(0), columns = passage.size(0), width = query.size(1);
  const Tensor targets = stable::contiguous(target);
  const std::optional<Tensor> ids = passage_id ? std::optional(stable::contiguous(*passage_id)) : std::nullopt;
  const std::optional<Tensor> weight_values = weight ? std::optional(stable::contiguous(*weight)) : std::nullopt;
  check_targets(targets.const_data_ptr<int64_t>(), rows, columns);
  const std::vector<float> weights = row_weights(weight_values, rows, mean);
  const RowShared shared{columns, ids ? ids->const_data_ptr<int64_t>() : nullptr, *scale.const_data_ptr<float>(),
                         static_cast<float>(label_smoothing)};

  Tensor loss = empty_float(query, {}), scale_grad = empty_float(query, {});
  Tensor log_normalizer = empty_float(query, {rows}), target_score = empty_float(query, {rows});
  Tensor correct = stable::new_empty(query, {rows}, ScalarType::Bool);
  Tensor query_grads = query_grad ? empty_float(query, {rows, width}) : empty_float(query, {0});
  Tensor passage_grads = passage_grad ? stable::new_zeros(query, {columns, width}, ScalarType::Float)
                                      : empty_float(query, {0});
  RowOutputs outputs{std::vector<float>(rows), std::vector<float>(rows), log_normalizer.mutable_data_ptr<float>(),
                     target_score.mutable_data_ptr<float>(), correct.mutable_data_ptr<bool>()};

  const int64_t row_bytes = std::max<int64_t>(1, columns * static_cast<int64_t>(sizeof(float)));
  const int64_t chunk_rows = std::clamp<int64_t>(chunk_bytes / row_bytes, 1, std::max<int64_t>(1, rows));
  const int64_t tile_rows = std::max<int64_t>(1, kTileBytes / std::max<int64_t>(1, width * 4));
  FloatRows queries(query, chunk_rows), passages(passage, tile_rows);
  const Tensor buffer = empty_float(query, {chunk_rows, columns});

  for_each_range(rows, queries.tile_rows() < chunk_rows ? queries.tile_rows() : chunk_rows, [&](int64_t start, int64_t count) {
    const Tensor chunk = queries.get(start, count);
    const Tensor scores = rows_of(buffer, 0, count);
    for_each_range(columns, passages.tile_rows(), [&](int64_t first, int64_t size) {
      multiply(columns_of(scores, first, size), chunk, stable::transpose(passages.get(first, size), 0, 1));
    });
    run_rows(scores, start, targets.const_data_ptr<int64_t>(), weights, shared, outputs);
    if (query_grad) {
      for_each_range(columns, passages.tile_rows(), [&](int64_t first, int64_t size) {
        const Tensor gradient = columns_of(scores, first, size);
        const Tensor out = rows_of(query_grads, start, count);
        (first == 0 ? multiply : multiply_add)(out, gradient, passages.get(first, size));
      });
    }
    if (passage_grad) multiply_add(passage_grads, stable::transpose(scores, 0, 1), chunk);
  });

  double loss_sum = 0, scale_grad_sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    // A row of weight zero does not count, even if its loss is not finite.
    if (weights[i] != 0) loss_sum += static_cast<double>(weights[i]) * outputs.loss[i];
    scale_grad_sum += outputs.scale_grad[i];
  }
  *loss.mutable_data_ptr<float>() = static_cast<float>(loss_sum);
  *scale_grad.mutable_data_ptr<float>() = static_cast<float>(scale_grad_sum);
  return {loss, query_grads, passage_grads, scale_grad, log_normalizer, target_score, correct};
}

}  // namespace fastdense::cpu
