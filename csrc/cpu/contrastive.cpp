// Loss and gradients in one pass over chunks of rows:
//
//   scores = query[rows] @ passage.T             [rows, M], the only large buffer
//   row kernel: scores -> gradient, in place     see row_kernel.inc
//   query_grad[rows] = gradient @ passage
//   passage_grad += gradient.T @ query[rows]
//
// Passages that are not contiguous float32 are converted a tile of rows at a time.

#include "cpu/contrastive.h"

#include <algorithm>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/matrix.h"

namespace fastdense::cpu {
namespace {

constexpr int64_t kTileBytes = int64_t{8} << 20;
constexpr int64_t kScoresPerThread = 32768;  // less work than this is not worth another thread

template <typename Body>
void for_each_range(int64_t size, int64_t step, Body body) {
  for (int64_t start = 0; start < size; start += step) body(start, std::min(step, size - start));
}

// What the loss of each row is multiplied by; all zeros where the weights' sum is zero.
std::vector<float> row_weights(const std::optional<Tensor>& weight, int64_t rows, bool mean) {
  std::vector<float> weights(rows, 1.0F);
  if (weight) std::copy_n(torch::stable::contiguous(*weight).const_data_ptr<float>(), rows, weights.begin());
  if (!mean) return weights;
  double total = 0;
  for (float value : weights) total += value;
  for (float& value : weights) value = total > 0 ? static_cast<float>(value / total) : 0.0F;
  return weights;
}

class Pass {
 public:
  Pass(const Tensor& query, const Tensor& passage, const Tensor& target, const RowShared& shared,
       std::vector<float> weights, int64_t chunk_rows)
      : rows_(query.size(0)),
        shared_(shared),
        target_(target.const_data_ptr<int64_t>()),
        weights_(std::move(weights)),
        results_(rows_),
        chunk_rows_(chunk_rows),
        queries_(query, chunk_rows),
        passages_(passage, kTileBytes / std::max<int64_t>(1, passage.size(1) * sizeof(float))),
        buffer_(empty_float(query, {chunk_rows, passage.size(0)})) {
    for (int64_t i = 0; i < rows_; ++i) {
      STD_TORCH_CHECK(target_[i] >= 0 && target_[i] < shared_.columns, "target must lie in [0, ", shared_.columns,
                      "), got ", target_[i], " in row ", i);
    }
  }

  // A gradient that is null is not computed; passage_grad must be zero at the start.
  void run(const Tensor* query_grad, const Tensor* passage_grad) {
    for_each_range(rows_, chunk_rows_, [&](int64_t start, int64_t count) {
      const Tensor chunk = queries_.get(start, count);
      const Tensor scores = rows_of(buffer_, 0, count);
      for_each_tile([&](int64_t first, int64_t size) {
        multiply(columns_of(scores, first, size), chunk, transposed(passages_.get(first, size)));
      });
      scores_to_gradient(scores, start);
      if (query_grad) {
        const Tensor out = rows_of(*query_grad, start, count);
        for_each_tile([&](int64_t first, int64_t size) {
          (first == 0 ? multiply : multiply_add)(out, columns_of(scores, first, size), passages_.get(first, size));
        });
      }
      if (passage_grad) multiply_add(*passage_grad, transposed(scores), chunk);
    });
  }

  void write(float* loss, float* scale_grad, float* log_normalizer, float* target_score, bool* correct) const {
    double loss_sum = 0, scale_grad_sum = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      loss_sum += static_cast<double>(weights_[i]) * results_[i].loss;
      scale_grad_sum += results_[i].scale_grad;
      log_normalizer[i] = results_[i].log_normalizer;
      target_score[i] = results_[i].target_score;
      correct[i] = results_[i].correct;
    }
    *loss = static_cast<float>(loss_sum);
    *scale_grad = static_cast<float>(scale_grad_sum);
  }

 private:
  template <typename Body>
  void for_each_tile(Body body) {
    for_each_range(shared_.columns, passages_.rows_at_once(), body);
  }

  void scores_to_gradient(const Tensor& scores, int64_t first_row) {
    float* data = scores.mutable_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, kScoresPerThread / shared_.columns);
    torch::stable::parallel_for(0, scores.size(0), grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t i = first_row + r;
        results_[i] = kernel_(data + r * shared_.columns, target_[i], weights_[i], shared_);
      }
    });
  }

  int64_t rows_;
  RowShared shared_;
  const int64_t* target_;
  std::vector<float> weights_;
  std::vector<RowResult> results_;
  int64_t chunk_rows_;
  FloatRows queries_;
  FloatRows passages_;
  Tensor buffer_;
  RowKernel kernel_ = row_kernel();
};

}  // namespace

ContrastiveResult contrastive(const Tensor& query, const Tensor& passage, const Tensor& target, const Tensor& scale,
                              const std::optional<Tensor>& passage_id, const std::optional<Tensor>& weight,
                              double label_smoothing, bool mean, bool query_grad, bool passage_grad,
                              int64_t chunk_bytes) {
  namespace stable = torch::stable;
  const int64_t rows = query.size(0), columns = passage.size(0), width = query.size(1);
  const Tensor targets = stable::contiguous(target);
  const Tensor ids = passage_id ? stable::contiguous(*passage_id) : Tensor();
  const RowShared shared{columns, passage_id ? ids.const_data_ptr<int64_t>() : nullptr, *scale.const_data_ptr<float>(),
                         static_cast<float>(label_smoothing)};
  const int64_t row_bytes = std::max<int64_t>(1, columns * sizeof(float));
  const int64_t chunk_rows = std::clamp<int64_t>(chunk_bytes / row_bytes, 1, std::max<int64_t>(1, rows));

  Tensor query_grads = query_grad ? empty_float(query, {rows, width}) : empty_float(query, {0});
  Tensor passage_grads =
      passage_grad ? stable::new_zeros(query, {columns, width}, ScalarType::Float) : empty_float(query, {0});
  Pass pass(query, passage, targets, shared, row_weights(weight, rows, mean), chunk_rows);
  pass.run(query_grad ? &query_grads : nullptr, passage_grad ? &passage_grads : nullptr);

  Tensor loss = empty_float(query, {}), scale_grad = empty_float(query, {});
  Tensor log_normalizer = empty_float(query, {rows}), target_score = empty_float(query, {rows});
  Tensor correct = stable::new_empty(query, {rows}, ScalarType::Bool);
  pass.write(loss.mutable_data_ptr<float>(), scale_grad.mutable_data_ptr<float>(),
             log_normalizer.mutable_data_ptr<float>(), target_score.mutable_data_ptr<float>(),
             correct.mutable_data_ptr<bool>());
  return {loss, query_grads, passage_grads, scale_grad, log_normalizer, target_score, correct};
}

}  // namespace fastdense::cpu
