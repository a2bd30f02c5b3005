// The three products of a chunk, in blocks that stay in the caches.

#include "cpu/products.h"

#include <cstring>
#include <numeric>

namespace fastdense::cpu {
namespace {

constexpr int64_t kMostGroups = 256;
// Of a float32 score, summed one after the other: what a longer chain adds to a large sum, it rounds away. The rounding
// of bfloat16 is larger than either.
constexpr int64_t kChainUnits = 128;
constexpr int64_t kStepUnits = 256;  // of the inner dimension of the queries' gradients
constexpr int64_t kMostWidth = 392;  // of the inputs in one task: with kStepUnits, half of the second-level cache
constexpr int64_t kLeastWidth = 96;
constexpr int64_t kMostStepRows = 32;  // that are packed to steps at a time
constexpr int64_t kRowsAhead = 4;      // passages that are on their way from memory while one is packed

void add_rows(const float* product, int64_t rows, int64_t columns, const PanelProduct& to) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = to.c + r * to.c_stride;
    const float* from = product + r * kPanel;
    for (int64_t d = 0; d < columns; ++d) out[d] = to.accumulate ? out[d] + from[d] : from[d];
  }
}

int64_t units_of(int64_t elements, const Kernels& kernels) {
  return round_up(ceil_div(elements, kernels.depth), kernels.unit_step);
}

// A group is one or several blocks.
int64_t columns_of_group(int64_t columns, int64_t block_columns) {
  return ceil_div(ceil_div(columns, block_columns), kMostGroups) * block_columns;
}

int64_t width_of_part(int64_t width) {
  const int64_t parts = std::clamp<int64_t>(width / kLeastWidth, 1, torch::stable::get_num_threads());
  return round_up(std::max<int64_t>(1, ceil_div(width, parts)), kPanel);
}

}  // namespace

void add(const PanelSums& sums, PanelSums* total) {
  for (int lane = 0; lane < kPanel; ++lane) {
    total->exponentials[lane] += sums.exponentials[lane];
    total->moments[lane] += sums.moments[lane];
    total->excess[lane] += sums.excess[lane];
    total->left_out[lane] += sums.left_out[lane];
    total->largest[lane] = std::max(total->largest[lane], sums.largest[lane]);
  }
}

Products::Products(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients)
    : problem_(problem),
      kernels_(kernels),
      gradients_(gradients),
      few_(are_few(problem.rows, kernels)),
      segment_columns_(plan.segment_columns),
      block_columns_(plan.block_columns),
      panel_units_(units_of(plan.segment_columns, kernels) * kPanel),
      width_units_(units_of(problem.width, kernels)),
      group_columns_(columns_of_group(problem.columns, plan.block_columns)),
      groups_(ceil_div(problem.columns, group_columns_)),
      part_width_(width_of_part(problem.width)),
      weights_(gradients.wanted() ? plan.chunk_rows / kPanel * panel_units_ : 0),
      queries_(few_ ? plan.chunk_rows * problem.query.scratch_size() : plan.chunk_rows * width_units_),
      weighted_queries_(gradients.passage && !few_ ? plan.chunk_rows / kernels.depth * round_up(problem.width, kPanel)
                                                   : 0),
      query_products_(gradients.query ? plan.chunk_rows * problem.width : 0),
      target_(plan.chunk_rows),
      rows_by_block_(plan.chunk_rows),
      target_id_(plan.chunk_rows) {
  // What fills up the last step of a panel is multiplied with zeros, and must not be nan.
  const int64_t written = ceil_div(plan.segment_columns, kernels.depth) * kPanel;
  for (int64_t panel = 0; gradients.wanted() && panel < plan.chunk_rows / kPanel; ++panel) {
    std::fill(weights(panel) + written, weights(panel) + panel_units_, 0);
  }
}

void Products::load(int64_t first_row, int64_t count, const VisitQuery& visit) {
  first_row_ = first_row;
  count_ = count;
  panels_ = ceil_div(count, kPanel);
  on_threads(panels_, count_ * problem_.width * 16, [&](const auto& next) {
    const int64_t stride = problem_.query.scratch_size();
    Scratch<float> own(few_ ? 0 : stride * kPanel), passage(problem_.passage.scratch_size());
    float* queries = few_ ? reinterpret_cast<float*>(queries_.data()) : own.data();
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      const void* values[kPanel];
      const int64_t first = panel * kPanel, rows = rows_of_panel(panel);
      std::fill_n(&target_[first], kPanel, -1);
      for (int64_t i = 0; i < rows; ++i) {
        target_[first + i] = problem_.target[first_row_ + first + i];
        if (problem_.passage_id) target_id_[first + i] = problem_.passage_id[target_[first + i]];
        values[i] = problem_.query.get(first_row_ + first + i, queries + (few_ ? first + i : i) * stride);
        if (visit) visit(first + i, values[i], passage.data());
      }
      if (few_) {
        for (int64_t i = 0; i < rows; ++i) few_queries_[first + i] = static_cast<const float*>(values[i]);
      } else {
        pack_queries(values, rows, queries_.data() + panel * width_units_ * kPanel);
      }
    }
  });
}

void Products::pack_queries(const void* const* values, int64_t rows, uint32_t* out) {
  if (rows < kPanel) std::memset(out, 0, width_units_ * kPanel * sizeof(uint32_t));
  kernels_.pack_panel(values, static_cast<int>(rows), problem_.width, out);
}

void Products::add_gradients(const RowResult* results, const std::function<void(const Segment&)>& fill) {
  if (gradients_.passage) {
    sort_targets();
    if (!few_) pack_weighted_queries(results);
  }
  for (int64_t first = 0; first < problem_.columns; first += segment_columns_) {
    const Segment segment{first, std::min(segment_columns_, problem_.columns - first)};
    fill(segment);
    if (gradients_.query) few_ ? multiply_passages_few(segment) : multiply_passages(segment);
    if (gradients_.passage) multiply_queries(segment, results, first_row_ > 0);
  }
  if (!gradients_.query) return;
  few_ ? write_query_gradients_few(results) : write_query_gradients(results);
}

void Products::score(const std::vector<int64_t>& panels, const Segment& segment, const VisitScores& visit) {
  const double operations = 2.0 * rows_multiplied(panels.size()) * segment.count * problem_.width;
  on_threads(ceil_div(segment.count, group_columns_), operations, [&](const auto& next) {
    Scratch<uint32_t> packed(few_ ? 0 : round_up(width_units_, kBlock) * kColumnBlock);
    Scratch<float> scores(kColumnBlock * kPanel), scratch(kRowsAtOnce * problem_.passage.scratch_size());
    for (int64_t group = next(); group >= 0; group = next()) {
      const int64_t start = group * group_columns_, end = std::min(start + group_columns_, segment.count);
      for (int64_t first = start; first < end; first += block_columns_) {
        const Segment block{segment.first + first, std::min(block_columns_, end - first)};
        if (!few_) pack_passages(block, packed.data(), scratch.data());
        for (int64_t panel : panels) {
          few_ ? score_few(panel, block, scores.data(), scratch.data())
               : score_panel(panel, block, packed.data(), scores.data());
          visit({group, first == start, panel, block, first, scores.data()});
        }
      }
    }
  });
}

void Products::score_panel(int64_t panel, const Segment& block, const uint32_t* packed, float* scores) {
  const uint32_t* queries = queries_.data() + panel * width_units_ * kPanel;
  const int64_t chain = kernels_.depth == 1 ? kChainUnits : width_units_;
  int64_t first = 0;
  do {  // once where there is no width, for the zeros
    kernels_.multiply_blocks(block.count,
                             {packed + first * kColumnBlock, kColumnBlock * kBlock, queries + first * kPanel,
                              std::min(chain, width_units_ - first), scores, kPanel, first > 0});
    first += chain;
  } while (first < width_units_);
}

void Products::mask(const ScoredBlock& block, float* target_score) const {
  for (int64_t i = 0; i < kPanel; ++i) {
    const int64_t row = block.panel * kPanel + i, column = target_[row] - block.columns.first;
    if (column < 0 || column >= block.columns.count) continue;
    target_score[row] = block.scores[column * kPanel + i];
    block.scores[column * kPanel + i] = kLeftOut;
  }
  if (problem_.passage_id) {
    kernels_.leave_out(block.scores, block.columns.count, problem_.passage_id + block.columns.first,
                       target_id_.data() + block.panel * kPanel);
  }
  const int64_t rows = rows_of_panel(block.panel);
  for (int64_t j = 0; rows < kPanel && j < block.columns.count; ++j) {
    std::fill(block.scores + j * kPanel + rows, block.scores + (j + 1) * kPanel, kLeftOut);
  }
}

void Products::pack_passages(const Segment& block, uint32_t* packed, float* scratch) {
  for (int64_t j = 0; j < block.count; ++j) {
    if (j + kRowsAhead < block.count) problem_.passage.prefetch(block.first + j + kRowsAhead, 0, problem_.width);
    kernels_.pack_block_row(problem_.passage.get(block.first + j, scratch), problem_.width, packed + j * kBlock,
                            kColumnBlock * kBlock);
  }
}

// Rows in the order of their targets' blocks, and of their own within a block.
void Products::sort_targets() {
  const int64_t blocks = ceil_div(problem_.columns, block_columns_);
  block_rows_.assign(blocks + 1, 0);
  for (int64_t i = 0; i < count_; ++i) ++block_rows_[target_[i] / block_columns_ + 1];
  std::partial_sum(block_rows_.begin(), block_rows_.end(), block_rows_.begin());
  std::vector<int64_t> place(block_rows_.begin(), block_rows_.end() - 1);
  for (int64_t i = 0; i < count_; ++i) rows_by_block_[place[target_[i] / block_columns_]++] = i;
}

std::vector<int64_t> Products::all_panels() const {
  std::vector<int64_t> panels(panels_);
  std::iota(panels.begin(), panels.end(), 0);
  return panels;
}

void Products::pack_weighted_queries(const RowResult* results) {
  const int depth = kernels_.depth;
  const int64_t steps = panels_ * kPanel / depth;
  on_threads(panels_, count_ * problem_.width * 8, [&](const auto& next) {
    Scratch<float> first(problem_.query.scratch_size()), second(problem_.query.scratch_size());
    const std::vector<float> zeros(problem_.width);
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      for (int64_t i = panel * kPanel; i < (panel + 1) * kPanel; i += depth) {
        const void* values[2] = {zeros.data(), zeros.data()};
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

// Tasks own a part of the width and of the panels; parts of the width come first, for they share no packing.
void Products::multiply_passages(const Segment& segment) {
  const int64_t width = problem_.width, threads = torch::stable::get_num_threads();
  const int64_t most_parts = std::max<int64_t>(1, width / kLeastWidth);
  int64_t parts =
      std::clamp<int64_t>(threads, ceil_div(width, kMostWidth), std::max(most_parts, ceil_div(width, kMostWidth)));
  const int64_t part_width = round_up(ceil_div(width, parts), kernels_.tile_rows);
  parts = ceil_div(width, std::max<int64_t>(1, part_width));
  const int64_t groups = std::min(panels_, ceil_div(threads, std::max<int64_t>(1, parts)));
  const int64_t group_panels = ceil_div(panels_, groups);
  const double operations = 2.0 * panels_ * kPanel * segment.count * width;
  on_threads(parts * groups, operations, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t first = task % parts * part_width, panel = task / parts * group_panels;
      multiply_passages_part(segment, {first, std::min(part_width, width - first)},
                             {panel, std::min(group_panels, panels_ - panel)});
    }
  });
}

void Products::multiply_passages_part(const Segment& segment, const Segment& width, const Segment& panels) {
  const int depth = kernels_.depth;
  Scratch<uint32_t> packed(round_up(width.count, kernels_.tile_rows) * kStepUnits);
  Scratch<float> scratch(problem_.passage.scratch_size() * kernels_.unit_step * depth);
  for (int64_t start = 0; start < segment.count; start += kStepUnits * depth) {
    const Segment passages{segment.first + start, std::min(kStepUnits * depth, segment.count - start)};
    const int64_t units = units_of(passages.count, kernels_), stride = units * kernels_.tile_rows;
    pack_passage_steps(passages, width, stride, packed.data(), scratch.data());
    for (int64_t panel = panels.first; panel < panels.first + panels.count; ++panel) {
      kernels_.multiply_steps(width.count, {packed.data(), stride, weights(panel) + start / depth * kPanel, units,
                                            query_products_.data() + (panel * problem_.width + width.first) * kPanel,
                                            kPanel, passages.first > 0});
    }
  }
}

void Products::pack_passage_steps(const Segment& passages, const Segment& width, int64_t stride, uint32_t* packed,
                                  float* scratch) {
  const int64_t rows = int64_t{kernels_.unit_step} * kernels_.depth, ahead = std::max(kRowsAhead, rows);
  for (int64_t first = 0; first < passages.count; first += rows) {
    const void* values[kMostStepRows] = {};
    for (int64_t k = 0; k < std::min(rows, passages.count - first); ++k) {
      const int64_t row = passages.first + first + k;
      if (first + k + ahead < passages.count) problem_.passage.prefetch(row + ahead, width.first, width.count);
      float* row_scratch = scratch + k * problem_.passage.scratch_size();
      values[k] = problem_.passage.get(row, width.first, width.count, row_scratch);
    }
    kernels_.pack_steps(values, width.count, packed + first / kernels_.depth * kernels_.tile_rows, stride);
  }
}

void Products::multiply_queries(const Segment& segment, const RowResult* results, bool accumulate) {
  const int64_t blocks = ceil_div(segment.count, block_columns_);
  const double operations = 2.0 * rows_multiplied(panels_) * segment.count * problem_.width;
  on_threads(blocks, operations, [&](const auto& next) {
    Scratch<uint32_t> packed(few_ ? 0 : round_up(panels_at_once() * kPanel / kernels_.depth, kBlock) * kColumnBlock);
    Scratch<float> scratch(problem_.query.scratch_size());
    for (int64_t i = next(); i >= 0; i = next()) {
      const int64_t first = i * block_columns_;
      const Segment block{segment.first + first, std::min(block_columns_, segment.count - first)};
      if (few_) {
        multiply_queries_few(block, segment.first, results, accumulate);
      } else {
        multiply_queries_block(block, segment.first, packed.data(), accumulate);
      }
      add_target_gradients(block, results, scratch.data());
    }
  });
}

void Products::multiply_queries_block(const Segment& block, int64_t segment_first, uint32_t* packed, bool accumulate) {
  const int64_t most = panels_at_once();
  for (int64_t first = 0; first < panels_; first += most) {
    const Segment panels{first, std::min(most, panels_ - first)};
    pack_weights(block, segment_first, panels, packed);
    multiply_queries_panels(block, panels, packed, accumulate || first > 0);
  }
}

int64_t Products::panels_at_once() const {
  return std::min(panels_, std::max<int64_t>(1, kernels_.inner_units * kernels_.depth / kPanel));
}

void Products::pack_weights(const Segment& block, int64_t segment_first, const Segment& panels, uint32_t* packed) {
  for (int64_t panel = panels.first; panel < panels.first + panels.count; ++panel) {
    const int64_t unit = (panel - panels.first) * kPanel / kernels_.depth;
    kernels_.transpose_exponentials(weights(panel) + (block.first - segment_first) / kernels_.depth * kPanel,
                                    block.count, panel + 1 < panels_ ? panel_units_ : 0,
                                    packed + unit / kBlock * kColumnBlock * kBlock + unit % kBlock);
  }
}

void Products::multiply_queries_panels(const Segment& block, const Segment& panels, const uint32_t* packed,
                                       bool accumulate) {
  const int64_t panel_units = kPanel / kernels_.depth, width = problem_.width;
  // The last panel's rows beyond the queries are zeros.
  const int64_t units = std::min(panels.count * panel_units, units_of(count_ - panels.first * kPanel, kernels_));
  for (int64_t d = 0; d < width; d += kPanel) {
    const int64_t columns = std::min<int64_t>(kPanel, width - d);
    const uint32_t* right = weighted_queries_.data() + (d * panels_ + panels.first * kPanel) * panel_units;
    float* out = gradients_.passage + block.first * width + d;
    PanelProduct product{packed, kColumnBlock * kBlock, right, units, out, width, accumulate};
    if (columns == kPanel) {
      kernels_.multiply_blocks(block.count, product);
      continue;
    }
    float edge[kColumnBlock * kPanel];
    PanelProduct whole = product;
    whole.c = edge;
    whole.c_stride = kPanel;
    whole.accumulate = false;
    kernels_.multiply_blocks(block.count, whole);
    add_rows(edge, block.count, columns, product);
  }
}

// The rank-one terms of the targets, in float32, while the block lies in cache.
void Products::add_target_gradients(const Segment& block, const RowResult* results, float* scratch) {
  const int64_t index = block.first / block_columns_;
  for (int64_t k = block_rows_[index]; k < block_rows_[index + 1]; ++k) {
    const int64_t i = rows_by_block_[k];
    kernels_.add_scaled(results[i].target_gradient, problem_.query.get(first_row_ + i, scratch), problem_.width,
                        gradients_.passage + target_[i] * problem_.width);
  }
}

void Products::write_query_gradients(const RowResult* results) {
  const int64_t width = problem_.width;
  on_threads(panels_, count_ * width * 16, [&](const auto& next) {
    const int64_t stride = problem_.passage.scratch_size();
    Scratch<float> scratch(kPanel * stride);
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      const int64_t first = panel * kPanel, rows = rows_of_panel(panel);
      float* out[kPanel];
      const void* target[kPanel];
      float factor[kPanel], target_gradient[kPanel];
      for (int64_t i = 0; i < rows; ++i) {
        out[i] = gradients_.query + (first_row_ + first + i) * width;
        target[i] = problem_.passage.get(target_[first + i], scratch.data() + i * stride);
        factor[i] = results[first + i].factor;
        target_gradient[i] = results[first + i].target_gradient;
      }
      kernels_.write_panel(query_products_.data() + panel * width * kPanel, factor, target, target_gradient,
                           static_cast<int>(rows), width, out);
    }
  });
}

}  // namespace fastdense::cpu
