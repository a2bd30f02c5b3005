#include "cpu/chunk.h"

#include <cmath>
#include <cstring>
#include <numeric>

namespace fastdense::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896F;
constexpr int64_t kMostGroups = 256;
// Of an exponential, as a power of two: sums over 2^20 of them, times inputs of any usual size, stay finite.
constexpr float kLargestPower = 64.0F;

int64_t blocks_of_group(int64_t columns) { return ceil_div(ceil_div(columns, kColumnBlock), kMostGroups); }

void add(const PanelSums& sums, PanelSums* total) {
  for (int lane = 0; lane < kPanel; ++lane) {
    total->exponentials[lane] += sums.exponentials[lane];
    total->moments[lane] += sums.moments[lane];
    total->excess[lane] += sums.excess[lane];
    total->left_out[lane] += sums.left_out[lane];
    total->largest[lane] = std::max(total->largest[lane], sums.largest[lane]);
  }
}

}  // namespace

Chunk::Chunk(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients)
    : problem_(problem),
      kernels_(kernels),
      gradients_(gradients),
      few_(problem.rows <= kFewQueries),
      segment_columns_(plan.segment_columns),
      panel_units_(ceil_div(plan.segment_columns, kernels.depth) * kPanel),
      width_units_(ceil_div(problem.width, kernels.depth)),
      groups_(ceil_div(problem.columns, blocks_of_group(problem.columns) * kColumnBlock)),
      log2_scale_(problem.scale * kLog2E),
      exponentials_(gradients.query || gradients.passage ? plan.chunk_rows / kPanel * panel_units_ : 0),
      queries_(plan.chunk_rows * width_units_),
      weighted_queries_(gradients.passage ? plan.chunk_rows / kernels.depth * round_up(problem.width, kPanel) : 0),
      query_products_(gradients.query ? plan.chunk_rows * problem.width : 0),
      sums_(groups_ * plan.chunk_rows / kPanel),
      target_(plan.chunk_rows),
      rows_by_block_(plan.chunk_rows),
      target_id_(plan.chunk_rows),
      target_score_(plan.chunk_rows),
      reference_(plan.chunk_rows) {}

void Chunk::run(int64_t first_row, int64_t count, RowResult* results) {
  first_row_ = first_row;
  count_ = count;
  panels_ = ceil_div(count, kPanel);
  pack_queries();
  sum_rows(results);
  if (!gradients_.query && !gradients_.passage) return;

  if (gradients_.passage) {
    sort_targets();
    if (!few_) pack_weighted_queries(results);
  }
  for (int64_t first = 0; first < problem_.columns; first += segment_columns_) {
    const Segment segment{first, std::min(segment_columns_, problem_.columns - first)};
    if (segment_columns_ < problem_.columns) score(all_panels(), segment, true);
    if (problem_.label_smoothing > 0) smooth(segment, results);
    if (gradients_.query) few_ ? multiply_passages_few(segment) : multiply_passages(segment);
    if (gradients_.passage) multiply_queries(segment, results, first_row > 0);
  }
  if (gradients_.query) write_query_gradients(results);
}

void Chunk::pack_queries() {
  on_threads(panels_, count_ * problem_.width * 4, [&](const auto& next) {
    Scratch<float> query(problem_.query.scratch_size()), passage(problem_.query.scratch_size());
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      uint32_t* out = queries_.data() + panel * width_units_ * kPanel;
      if ((panel + 1) * kPanel > count_) std::memset(out, 0, width_units_ * kPanel * sizeof(uint32_t));
      for (int64_t i = panel * kPanel; i < (panel + 1) * kPanel; ++i) {
        target_[i] = i < count_ ? problem_.target[first_row_ + i] : -1;
        if (i >= count_) continue;
        const float* values = problem_.query.get(first_row_ + i, query.data());
        if (few_) {
          std::memcpy(out + i * problem_.width, values, problem_.width * sizeof(float));
        } else {
          kernels_.pack_panel_column(values, problem_.width, out + i % kPanel);
        }
        refer_to_target(i, values, passage.data());
      }
    }
  });
}

// Exponentials are taken relative to the target's score, to which no pass over the row is needed. The sum of the row
// holds the target's own exponential, about 1, so nothing that underflows counts; what overflows is seen afterwards.
void Chunk::refer_to_target(int64_t i, const float* query, float* scratch) {
  if (i + 1 < count_) problem_.passage.prefetch(problem_.target[first_row_ + i + 1], 0, problem_.width);
  if (problem_.passage_id) target_id_[i] = problem_.passage_id[target_[i]];
  reference_[i] = kernels_.dot(query, problem_.passage.get(target_[i], scratch), problem_.width);
}

// Rows in the order of their targets' blocks, and of their own within a block.
void Chunk::sort_targets() {
  const int64_t blocks = ceil_div(problem_.columns, kColumnBlock);
  block_rows_.assign(blocks + 1, 0);
  for (int64_t i = 0; i < count_; ++i) ++block_rows_[target_[i] / kColumnBlock + 1];
  std::partial_sum(block_rows_.begin(), block_rows_.end(), block_rows_.begin());
  std::vector<int64_t> place(block_rows_.begin(), block_rows_.end() - 1);
  for (int64_t i = 0; i < count_; ++i) rows_by_block_[place[target_[i] / kColumnBlock]++] = i;
}

// The sums of all rows, and their exponentials where those of all columns are kept.
void Chunk::sum_rows(RowResult* results) {
  const Segment all{0, problem_.columns};
  const bool keep = (gradients_.query || gradients_.passage) && segment_columns_ >= problem_.columns;
  score(all_panels(), all, keep);
  total_sums();
  const std::vector<int64_t> again = refer_to_largest();
  if (!again.empty()) {
    score(again, all, keep);
    total_sums();
  }
  on_threads(panels_, count_ * 1000.0, [&](const auto& next) {
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, count_); ++i) results[i] = result_of(i);
    }
  });
}

void Chunk::total_sums() {
  totals_.assign(panels_, PanelSums{});
  on_threads(panels_, groups_ * panels_ * kPanel * 8.0, [&](const auto& next) {
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      std::fill_n(totals_[panel].largest, kPanel, kLeftOut);
      for (int64_t group = 0; group < groups_; ++group) add(sums_[group * panels_ + panel], &totals_[panel]);
    }
  });
}

// Where a score lies too far above the target's, the largest one becomes the row's reference: then every exponential
// lies in [0, 1]. Returns the panels that must be scored once more.
std::vector<int64_t> Chunk::refer_to_largest() {
  std::vector<int64_t> again;
  for (int64_t i = 0; i < count_; ++i) {
    const float largest = totals_[i / kPanel].largest[i % kPanel];
    if (largest * log2_scale_ <= kLargestPower) continue;
    reference_[i] += largest;
    if (again.empty() || again.back() != i / kPanel) again.push_back(i / kPanel);
  }
  return again;
}

RowResult Chunk::result_of(int64_t i) const {
  const PanelSums& total = totals_[i / kPanel];
  const int64_t lane = i % kPanel;
  const int64_t taking_part = problem_.columns - static_cast<int64_t>(total.left_out[lane]) + 1;
  return finish_row(
      {total.exponentials[lane], total.moments[lane], total.excess[lane], total.largest[lane], taking_part},
      {target_score_[i], reference_[i], problem_.weight[first_row_ + i], problem_.scale, log2_scale_,
       problem_.label_smoothing});
}

std::vector<int64_t> Chunk::all_panels() const {
  std::vector<int64_t> panels(panels_);
  std::iota(panels.begin(), panels.end(), 0);
  return panels;
}

void Chunk::pack_weighted_queries(const RowResult* results) {
  const int depth = kernels_.depth;
  const int64_t steps = panels_ * kPanel / depth;
  on_threads(panels_, count_ * problem_.width, [&](const auto& next) {
    Scratch<float> first(problem_.query.scratch_size()), second(problem_.query.scratch_size());
    const std::vector<float> zeros(problem_.width);
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      for (int64_t i = panel * kPanel; i < (panel + 1) * kPanel; i += depth) {
        const float* values[2] = {zeros.data(), zeros.data()};
        float factor[2] = {0.0F, 0.0F};
        for (int64_t k = 0; k < depth && i + k < count_; ++k) {
          values[k] = problem_.query.get(first_row_ + i + k, (k == 0 ? first : second).data());
          factor[k] = results[i + k].factor;
        }
        kernels_.pack_panel_step(values, factor, problem_.width, weighted_queries_.data() + i / depth * kPanel,
                                 steps * kPanel);
      }
    }
  });
}

void Chunk::write_query_gradients(const RowResult* results) {
  constexpr int64_t kTransposed = 16;  // columns that stay in the first-level cache while rows pass by
  const int64_t width = problem_.width;
  on_threads(panels_, count_ * width * 4, [&](const auto& next) {
    Scratch<float> scratch(problem_.passage.scratch_size());
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      const float* products = query_products_.data() + panel * width * kPanel;
      for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, count_); ++i) {
        if (i + 1 < count_) problem_.passage.prefetch(target_[i + 1], 0, width);
        const float* passage = problem_.passage.get(target_[i], scratch.data());
        float* out = gradients_.query + (first_row_ + i) * width;
        for (int64_t d = 0; d < width; ++d) out[d] = results[i].target_gradient * passage[d];
      }
      for (int64_t first = 0; first < width; first += kTransposed) {
        const int64_t end = std::min(first + kTransposed, width);
        for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, count_); ++i) {
          float* out = gradients_.query + (first_row_ + i) * width;
          for (int64_t d = first; d < end; ++d) out[d] += results[i].factor * products[d * kPanel + i % kPanel];
        }
      }
    }
  });
}

// Label smoothing lowers every column that takes part by the same share; rare enough for a pass of its own.
void Chunk::smooth(const Segment& segment, const RowResult* results) {
  const int64_t blocks = ceil_div(segment.count, kColumnBlock);
  on_threads(blocks, count_ * segment.count, [&](const auto& next) {
    for (int64_t block = next(); block >= 0; block = next()) {
      const int64_t first = block * kColumnBlock;
      const Segment columns{segment.first + first, std::min(kColumnBlock, segment.count - first)};
      for (int64_t panel = 0; panel < panels_; ++panel) smooth_columns(panel, columns, first, results);
    }
  });
}

void Chunk::smooth_columns(int64_t panel, const Segment& columns, int64_t offset, const RowResult* results) {
  const int64_t rows = std::min<int64_t>(kPanel, count_ - panel * kPanel);
  const int64_t row = panel * kPanel;
  float share[kPanel] = {};
  for (int64_t j = columns.first; j < columns.first + columns.count; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      const bool left_out = problem_.passage_id ? problem_.passage_id[j] == target_id_[row + i] : j == target_[row + i];
      share[i] = left_out ? 0.0F : results[row + i].smoothing_share;
    }
    const int64_t column = offset + j - columns.first;
    kernels_.subtract(exponentials(panel) + column / kernels_.depth * kPanel, column % kernels_.depth, share);
  }
}

}  // namespace fastdense::cpu
