// The three products for a handful of queries: every passage is read where it lies, and memory sets the pace.

#include <cstring>

#include "cpu/products.h"

namespace fastdense::cpu {
namespace {

constexpr int64_t kRowsAhead = 4;  // passages that are on their way from memory while one is used
constexpr int64_t kLeastWidth = 64;

}  // namespace

void Products::score_few(const Segment& block, float* scores, float* scratch) {
  for (int64_t j = 0; j < block.count; ++j) {
    if (j + kRowsAhead < block.count) problem_.passage.prefetch(block.first + j + kRowsAhead, 0, problem_.width);
    const void* passage = problem_.passage.get(block.first + j, scratch);
    float* row = scores + j * kPanel;
    std::memset(row, 0, kPanel * sizeof(float));
    for (int64_t i = 0; i < count_; ++i) {
      row[i] = kernels_.dot(few_queries() + i * problem_.width, passage, problem_.width);
    }
  }
}

// Tasks own columns.
void Products::multiply_passages_few(const Segment& segment) {
  const int64_t width = problem_.width;
  const int64_t parts = std::clamp<int64_t>(width / kLeastWidth, 1, torch::stable::get_num_threads());
  const int64_t part_width = std::max<int64_t>(1, ceil_div(width, parts));
  on_threads(ceil_div(width, part_width), 2.0 * count_ * segment.count * width, [&](const auto& next) {
    Scratch<float> products(kFewQueries * part_width), scratch(problem_.passage.scratch_size());
    for (int64_t part = next(); part >= 0; part = next()) {
      const int64_t first = part * part_width, size = std::min(part_width, width - first);
      std::memset(products.data(), 0, count_ * size * sizeof(float));
      for (int64_t j = 0; j < segment.count; ++j) {
        const int64_t row = segment.first + j;
        if (j + kRowsAhead < segment.count) problem_.passage.prefetch(row + kRowsAhead, first, size);
        const void* passage = problem_.passage.get(row, first, size, scratch.data());
        const float* factor = reinterpret_cast<const float*>(weights(0) + j * kPanel);
        for (int64_t i = 0; i < count_; ++i) {
          kernels_.add_scaled(factor[i], passage, size, products.data() + i * size);
        }
      }
      for (int64_t d = 0; d < size; ++d) {
        for (int64_t i = 0; i < count_; ++i) {
          float* out = query_products_.data() + (first + d) * kPanel + i;
          *out = products[i * size + d] + (segment.first > 0 ? *out : 0.0F);
        }
      }
    }
  });
}

void Products::multiply_queries_few(const Segment& block, int64_t segment_first, const RowResult* results) {
  for (int64_t j = block.first; j < block.first + block.count; ++j) {
    const float* exponential = reinterpret_cast<const float*>(weights(0) + (j - segment_first) * kPanel);
    float factor[kFewQueries];
    for (int64_t i = 0; i < count_; ++i) factor[i] = exponential[i] * results[i].factor;
    kernels_.combine(factor, few_queries(), count_, problem_.width, gradients_.passage + j * problem_.width);
  }
}

}  // namespace fastdense::cpu
