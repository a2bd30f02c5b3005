// The three products for few queries: every passage is read where it lies.

#include "cpu/products.h"

namespace fastdense::cpu {

// The next passages of a block from row on, their columns of a part of the width; the ones after them are sent for.
int Products::take_rows_few(const Segment& block, int64_t row, const Segment& width, float* scratch,
                            const float** passages) const {
  const int64_t end = block.first + block.count;
  const int rows = static_cast<int>(std::min<int64_t>(kRowsAtOnce, end - row));
  for (int j = 0; j < rows; ++j) {
    if (row + j + kRowsAtOnce < end) problem_.passage.prefetch(row + j + kRowsAtOnce, width.first, width.count);
    passages[j] = static_cast<const float*>(
        problem_.passage.get(row + j, width.first, width.count, scratch + j * problem_.passage.scratch_size()));
  }
  return rows;
}

void Products::score_few(int64_t panel, const Segment& block, float* scores, float* scratch) {
  const float* passages[kRowsAtOnce];
  for (int64_t j = 0; j < block.count; j += kRowsAtOnce) {
    const int rows = take_rows_few(block, block.first + j, {0, problem_.width}, scratch, passages);
    kernels_.score_rows(rows, passages, few_queries_ + panel * kPanel, rows_of_panel(panel), problem_.width,
                        scores + j * kPanel);
  }
}

// Tasks own a part of the width, whose sums lie together: side by side with another task's, what a core reads ahead
// would take the other's lines from it.
void Products::multiply_passages_few(const Segment& segment) {
  const int64_t width = problem_.width;
  on_threads(ceil_div(width, part_width_), 2.0 * count_ * segment.count * width, [&](const auto& next) {
    Scratch<float> scratch(kRowsAtOnce * problem_.passage.scratch_size());
    for (int64_t part = next(); part >= 0; part = next()) {
      const Segment columns{part * part_width_, std::min(part_width_, width - part * part_width_)};
      float* sums = query_products_.data() + columns.first * count_;
      const float* passages[kRowsAtOnce];
      for (int64_t j = 0; j < segment.count; j += kRowsAtOnce) {
        const int rows = take_rows_few(segment, segment.first + j, columns, scratch.data(), passages);
        for (int64_t panel = 0; panel < panels_; ++panel) {
          kernels_.add_rows(rows, passages, few_weights(panel, j), rows_of_panel(panel), columns.count,
                            sums + panel * kPanel * columns.count, segment.first + j > 0);
        }
      }
    }
  });
}

void Products::multiply_queries_few(const Segment& block, int64_t segment_first, const RowResult* results,
                                    bool accumulate) {
  float factors[kRowsAtOnce * kPanel];
  for (int64_t j = 0; j < block.count; j += kRowsAtOnce) {
    const int rows = static_cast<int>(std::min<int64_t>(kRowsAtOnce, block.count - j));
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const float* exponential = few_weights(panel, block.first + j - segment_first);
      const int count = rows_of_panel(panel);
      for (int64_t k = 0; k < rows; ++k) {
        for (int64_t i = 0; i < count; ++i) {
          factors[k * kPanel + i] = exponential[k * kPanel + i] * results[panel * kPanel + i].factor;
        }
      }
      kernels_.combine_rows(rows, factors, few_queries_ + panel * kPanel, count, problem_.width,
                            gradients_.passage + (block.first + j) * problem_.width, accumulate || panel > 0);
    }
  }
}

void Products::write_query_gradients_few(const RowResult* results) {
  const int64_t width = problem_.width;
  Scratch<float> scratch(problem_.passage.scratch_size());
  for (int64_t i = 0; i < count_; ++i) {
    const auto* target = static_cast<const float*>(problem_.passage.get(target_[i], scratch.data()));
    float* out = gradients_.query + (first_row_ + i) * width;
    for (int64_t first = 0; first < width; first += part_width_) {
      const int64_t size = std::min(part_width_, width - first);
      kernels_.blend(results[i].factor, query_products_.data() + first * count_ + i * size, results[i].target_gradient,
                     target + first, size, out + first);
    }
  }
}

}  // namespace fastdense::cpu
