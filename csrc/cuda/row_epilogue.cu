// A chunk of dot products becomes the gradient of the loss to them: one block a row, which is read twice (online
// softmax, then the gradient) and written once.

#include <math_constants.h>

#include "cuda/row_epilogue.h"

namespace fastdense::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarp = 32;

// Of some of a row's columns, the target's not among them. Sums of exponentials are relative to the maximum.
struct Partial {
  float maximum;
  float exponentials;  // sum of exp(score - maximum)
  float moment;        // sum of exp(score - maximum) * (score - target_score)
  float excess;        // sum of score - target_score
  int taking_part;
};

// exp(from - to), where both may be -inf (no column yet): nothing then needs to be moved.
__device__ float change_of_maximum(float from, float to) { return from == to ? 1.0F : expf(from - to); }

__device__ void add_score(Partial& partial, float score, float target_score) {
  // Written so that nan becomes the maximum and stays it.
  if (!(score <= partial.maximum)) {
    const float factor = change_of_maximum(partial.maximum, score);
    partial.exponentials *= factor;
    partial.moment *= factor;
    partial.maximum = score;
  }
  const float e = expf(score - partial.maximum);
  partial.exponentials += e;
  partial.moment += e * (score - target_score);
  partial.excess += score - target_score;
  ++partial.taking_part;
}

__device__ Partial merged(const Partial& a, const Partial& b) {
  Partial sum;
  sum.maximum = a.maximum <= b.maximum ? b.maximum : a.maximum;
  if (isnan(b.maximum)) sum.maximum = b.maximum;
  const float of_a = change_of_maximum(a.maximum, sum.maximum), of_b = change_of_maximum(b.maximum, sum.maximum);
  sum.exponentials = a.exponentials * of_a + b.exponentials * of_b;
  sum.moment = a.moment * of_a + b.moment * of_b;
  sum.excess = a.excess + b.excess;
  sum.taking_part = a.taking_part + b.taking_part;
  return sum;
}

__device__ Partial from_lane(const Partial& mine, int distance) {
  constexpr unsigned kAll = 0xffffffffU;
  Partial other;
  other.maximum = __shfl_xor_sync(kAll, mine.maximum, distance);
  other.exponentials = __shfl_xor_sync(kAll, mine.exponentials, distance);
  other.moment = __shfl_xor_sync(kAll, mine.moment, distance);
  other.excess = __shfl_xor_sync(kAll, mine.excess, distance);
  other.taking_part = __shfl_xor_sync(kAll, mine.taking_part, distance);
  return other;
}

// The whole block's sum, in every thread, always in the same order.
__device__ Partial block_sum(Partial partial) {
  __shared__ Partial of_warp[kThreads / kWarp];
  for (int distance = kWarp / 2; distance > 0; distance /= 2) partial = merged(partial, from_lane(partial, distance));
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = partial;
  __syncthreads();
  Partial sum = of_warp[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) sum = merged(sum, of_warp[warp]);
  return sum;
}

struct Row {
  const float* scores;
  int64_t target;
  int64_t target_id;
  float scale;
  float target_score;  // nan where the target is out of range

  __device__ Row(const RowChunk& chunk, int64_t index) {
    scores = chunk.scores + index * chunk.columns;
    target = chunk.target[index];
    scale = *chunk.scale;
    const bool in_range = target >= 0 && target < chunk.columns;
    target_score = in_range ? scores[target] * scale : CUDART_NAN_F;
    target_id = in_range && chunk.passage_id != nullptr ? chunk.passage_id[target] : 0;
  }

  __device__ bool is_other(const RowChunk& chunk, int64_t column) const {
    return column != target && (chunk.passage_id == nullptr || chunk.passage_id[column] != target_id);
  }
};

__device__ void write_results(const RowChunk& chunk, int64_t index, const Row& row, const Partial& others,
                              float maximum, float all, float smoothed) {
  const float weight = chunk.weight[index];
  const float below_maximum = maximum - row.target_score;
  const float log_all = below_maximum == 0 ? log1pf(others.exponentials) : logf(all);
  chunk.loss[index] = weight * (log_all + below_maximum - smoothed * others.excess);
  chunk.scale_grad[index] = weight * (others.moment / all - smoothed * others.excess) / row.scale;
  chunk.log_normalizer[index] = maximum + log_all;
  chunk.target_score[index] = row.target_score;
  chunk.correct[index] = row.target_score > others.maximum;
}

// The sums of the other columns, moved from their own maximum to the whole row's.
__device__ Partial relative_to(Partial others, float maximum) {
  const float factor = change_of_maximum(others.maximum, maximum);
  others.exponentials *= factor;
  others.moment *= factor;
  return others;
}

__global__ void __launch_bounds__(kThreads) row_epilogue_kernel(RowChunk chunk) {
  const int64_t index = blockIdx.x;
  const Row row(chunk, index);
  Partial mine{-CUDART_INF_F, 0, 0, 0, 0};
  for (int64_t j = threadIdx.x; j < chunk.columns; j += kThreads) {
    if (row.is_other(chunk, j)) add_score(mine, row.scores[j] * row.scale, row.target_score);
  }
  Partial others = block_sum(mine);  // also: no thread writes before all have read the target's score
  const float maximum = row.target_score >= others.maximum ? row.target_score : others.maximum;
  others = relative_to(others, maximum);
  const float all = others.exponentials + expf(row.target_score - maximum);
  const float smoothed = chunk.label_smoothing / static_cast<float>(others.taking_part + 1);
  if (threadIdx.x == 0) write_results(chunk, index, row, others, maximum, all, smoothed);

  const float outer = chunk.weight[index] * row.scale;
  const float of_target = outer * (chunk.label_smoothing - smoothed - others.exponentials / all);
  float* out = chunk.scores + index * chunk.columns;
  for (int64_t j = threadIdx.x; j < chunk.columns; j += kThreads) {
    const float probability = expf(row.scores[j] * row.scale - maximum) / all;
    const float of_other = row.is_other(chunk, j) ? outer * (probability - smoothed) : 0.0F;
    out[j] = j == row.target ? of_target : of_other;
  }
}

}  // namespace

cudaError_t row_epilogue(const RowChunk& chunk, cudaStream_t stream) {
  if (chunk.rows > 0) row_epilogue_kernel<<<static_cast<unsigned>(chunk.rows), kThreads, 0, stream>>>(chunk);
  return cudaGetLastError();
}

}  // namespace fastdense::cuda
