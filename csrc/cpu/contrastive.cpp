// Loss and gradients in one pass over chunks of queries (chunk.h).

#include "cpu/contrastive.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/chunk.h"
#include "cpu/instruction_set.h"
#include "cpu/symmetric.h"

namespace fastdense::cpu {
namespace {

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

void check_targets(const Tensor& target, int64_t columns) {
  const int64_t* values = target.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < target.size(0); ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < columns, "target must lie in [0, ", columns, "), got ", values[i],
                    " in row ", i);
  }
}

// Contiguous, on the CPU; without the dispatcher, which nine results of a small problem would notice.
Tensor empty(std::initializer_list<int64_t> shape, int32_t dtype = aoti_torch_dtype_float32()) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(1, shape.begin()[d]);
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides.data(),
                                                  dtype, aoti_torch_device_type_cpu(), -1, &tensor));
  return Tensor(tensor);
}

void run(const Problem& problem, const Kernels& kernels, const Gradients& gradients, int64_t chunk_bytes,
         Hardest* hardest, RowResult* results) {
  const Plan plan = make_plan(problem.rows, problem.columns, problem.width, kernels, chunk_bytes);
  Chunk chunk(problem, plan, kernels, gradients, hardest);
  for (int64_t first = 0; first < problem.rows; first += plan.chunk_rows) {
    chunk.run(first, std::min(plan.chunk_rows, problem.rows - first), results + first);
  }
}

// Half of the budget is for a chunk's gradients of scores, half for scores.
void run_symmetric(const Problem& problem, const Kernels& kernels, const Gradients& gradients, int64_t chunk_bytes,
                   Hardest* hardest, RowResult* results) {
  const Plan plan = make_plan(problem.rows, problem.columns, problem.width, kernels, chunk_bytes / 2);
  Symmetric(problem, plan, kernels, gradients, chunk_bytes / 2, hardest).run(results);
}

// The sum over rows of one of their results, as a tensor without dimensions.
Tensor total(const std::vector<RowResult>& results, double RowResult::* value) {
  double sum = 0;
  for (const RowResult& result : results) sum += result.*value;
  Tensor tensor = empty({});
  *tensor.mutable_data_ptr<float>() = static_cast<float>(sum);
  return tensor;
}

std::vector<Tensor> by_products_of(const std::vector<RowResult>& results, const Tensor& hardest_index,
                                   const Tensor& hardest_score) {
  const int64_t rows = static_cast<int64_t>(results.size());
  Tensor log_normalizer = empty({rows}), target_score = empty({rows}), correct = empty({rows}, aoti_torch_dtype_bool());
  float *normalizers = log_normalizer.mutable_data_ptr<float>(), *scores = target_score.mutable_data_ptr<float>();
  bool* right = correct.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < rows; ++i) {
    normalizers[i] = results[i].log_normalizer;
    scores[i] = results[i].target_score;
    right[i] = results[i].correct;
  }
  return {log_normalizer, target_score, correct, hardest_index, hardest_score};
}

}  // namespace

ContrastiveResult contrastive(const Tensor& query, const Tensor& passage, const Tensor& target, const Tensor& scale,
                              const std::optional<Tensor>& passage_id, const std::optional<Tensor>& weight,
                              double label_smoothing, bool symmetric, bool mean, bool query_grad, bool passage_grad,
                              int64_t hardest, int64_t chunk_bytes, bool by_products) {
  const int64_t rows = query.size(0), columns = passage.size(0), width = query.size(1);
  const Kernels& kernels = choose_kernels(query.scalar_type() == ScalarType::BFloat16 && rows > kFewOfBfloat16);
  const Tensor targets = torch::stable::contiguous(target);
  const Tensor ids = passage_id ? torch::stable::contiguous(*passage_id) : Tensor();
  check_targets(targets, columns);
  const std::vector<float> weights = row_weights(weight, rows, mean);
  const Problem problem{Rows(query, kernels),
                        Rows(passage, kernels),
                        rows,
                        columns,
                        width,
                        targets.const_data_ptr<int64_t>(),
                        passage_id ? ids.const_data_ptr<int64_t>() : nullptr,
                        weights.data(),
                        *scale.const_data_ptr<float>(),
                        static_cast<float>(label_smoothing)};

  Tensor query_grads = query_grad ? empty({rows, width}) : empty({0});
  // Without queries no product writes it.
  Tensor passage_grads = !passage_grad ? empty({0})
                         : rows == 0   ? torch::stable::new_zeros(query, {columns, width}, ScalarType::Float)
                                       : empty({columns, width});
  const Gradients gradients{query_grad ? query_grads.mutable_data_ptr<float>() : nullptr,
                            passage_grad ? passage_grads.mutable_data_ptr<float>() : nullptr};
  std::vector<RowResult> results(rows);
  Tensor hardest_index, hardest_score;
  std::optional<Hardest> selection;
  if (by_products) {
    hardest_index = empty({rows, hardest}, aoti_torch_dtype_int64());
    hardest_score = empty({rows, hardest});
    if (hardest > 0) {
      selection.emplace(problem, kernels, hardest, hardest_index.mutable_data_ptr<int64_t>(),
                        hardest_score.mutable_data_ptr<float>());
    }
  }
  if (rows > 0) {
    const auto& run_direction = symmetric ? run_symmetric : run;
    run_direction(problem, kernels, gradients, chunk_bytes, selection ? &*selection : nullptr, results.data());
  }
  if (selection) selection->scale();
  return {total(results, &RowResult::loss), query_grads, passage_grads, total(results, &RowResult::scale_grad),
          by_products ? by_products_of(results, hardest_index, hardest_score) : std::vector<Tensor>()};
}

}  // namespace fastdense::cpu
