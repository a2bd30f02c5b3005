// The three products of a chunk, in blocks that stay in the caches.

#include <cstring>

#include "cpu/chunk.h"

namespace fastdense::cpu {
namespace {

constexpr int64_t kStepUnits = 256;  // of the inner dimension of the queries' gradients
constexpr int64_t kMostWidth = 392;  // of the inputs in one task: with kStepUnits, half of the second-level cache
constexpr int64_t kLeastWidth = 96;
constexpr int64_t kRowsAhead = 4;  // passages that are on their way from memory while one is packed

// Tiles of rows over [0, rows): body(first, count).
template <typename Body>
void for_each_tile(int64_t rows, int tile_rows, const Body& body) {
  for (int64_t first = 0; first < rows; first += tile_rows) {
    body(first, static_cast<int>(std::min<int64_t>(tile_rows, rows - first)));
  }
}

void add_rows(const float* tile, int rows, int64_t columns, const Tile& to) {
  for (int r = 0; r < rows; ++r) {
    float* out = to.c + r * to.c_stride;
    for (int64_t d = 0; d < columns; ++d) out[d] = to.accumulate ? out[d] + tile[r * kPanel + d] : tile[r * kPanel + d];
  }
}

}  // namespace

void Chunk::score(const std::vector<int64_t>& panels, const Segment& segment, bool keep) {
  const int64_t group_blocks = ceil_div(problem_.columns, groups_ * kColumnBlock);
  const int64_t group_columns = group_blocks * kColumnBlock;
  const double operations = 2.0 * panels.size() * kPanel * segment.count * problem_.width;
  on_threads(ceil_div(segment.count, group_columns), operations, [&](const auto& next) {
    Scratch<uint32_t> packed(round_up(width_units_, kBlock) * kColumnBlock);
    Scratch<float> scores(kColumnBlock * kPanel), scratch(problem_.passage.scratch_size());
    for (int64_t group = next(); group >= 0; group = next()) {
      PanelSums* sums = sums_.data() + group * panels_;
      for (int64_t panel : panels) {
        sums[panel] = PanelSums{};
        std::fill_n(sums[panel].largest, kPanel, kLeftOut);
      }
      const int64_t end = std::min((group + 1) * group_columns, segment.count);
      for (int64_t first = group * group_columns; first < end; first += kColumnBlock) {
        const Segment block{segment.first + first, std::min(kColumnBlock, end - first)};
        if (few_) {
          score_few(block, scores.data(), scratch.data());
        } else {
          pack_passages(block, packed.data(), scratch.data());
        }
        for (int64_t panel : panels) {
          uint32_t* out = keep ? exponentials(panel) + first / kernels_.depth * kPanel : nullptr;
          score_panel(panel, block, packed.data(), scores.data(), out, &sums[panel]);
        }
      }
    }
  });
}

void Chunk::pack_passages(const Segment& block, uint32_t* packed, float* scratch) {
  for (int64_t j = 0; j < block.count; ++j) {
    if (j + kRowsAhead < block.count) problem_.passage.prefetch(block.first + j + kRowsAhead, 0, problem_.width);
    kernels_.pack_block_row(problem_.passage.get(block.first + j, scratch), problem_.width, packed + j * kBlock,
                            kColumnBlock * kBlock);
  }
}

void Chunk::score_panel(int64_t panel, const Segment& block, const uint32_t* packed, float* scores, uint32_t* out,
                        PanelSums* sums) {
  const uint32_t* queries = queries_.data() + panel * width_units_ * kPanel;
  for_each_tile(few_ ? 0 : block.count, kernels_.tile_rows, [&](int64_t first, int rows) {
    kernels_.tile_by_blocks(rows, {packed + first * kBlock, kColumnBlock * kBlock, queries, width_units_,
                                   scores + first * kPanel, kPanel, false});
  });
  take_out_targets(panel, block, scores);
  if (problem_.passage_id) {
    kernels_.leave_out(scores, block.count, problem_.passage_id + block.first, target_id_.data() + panel * kPanel);
  }
  kernels_.exponentiate(
      {scores, block.count, reference_.data() + panel * kPanel, log2_scale_, problem_.label_smoothing > 0, out}, sums);
}

void Chunk::take_out_targets(int64_t panel, const Segment& block, float* scores) {
  for (int64_t i = 0; i < kPanel; ++i) {
    const int64_t row = panel * kPanel + i, column = target_[row] - block.first;
    if (column < 0 || column >= block.count) continue;
    target_score_[row] = scores[column * kPanel + i];
    scores[column * kPanel + i] = kLeftOut;
  }
}

// Tasks own a part of the width and of the panels; parts of the width come first, for they share no packing.
void Chunk::multiply_passages(const Segment& segment) {
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

void Chunk::multiply_passages_part(const Segment& segment, const Segment& width, const Segment& panels) {
  const int depth = kernels_.depth, tile_rows = kernels_.tile_rows;
  Scratch<uint32_t> packed(round_up(width.count, tile_rows) * kStepUnits);
  Scratch<float> first_row(problem_.passage.scratch_size()), second_row(problem_.passage.scratch_size());
  for (int64_t start = 0; start < segment.count; start += kStepUnits * depth) {
    const int64_t count = std::min(kStepUnits * depth, segment.count - start);
    for (int64_t j = 0; j < count; j += depth) {
      const int64_t row = segment.first + start + j;
      if (j + kRowsAhead < count) problem_.passage.prefetch(row + kRowsAhead, width.first, width.count);
      if (depth == 2 && j + 1 + kRowsAhead < count)
        problem_.passage.prefetch(row + 1 + kRowsAhead, width.first, width.count);
      const float* values[2] = {problem_.passage.get(row, width.first, width.count, first_row.data()), nullptr};
      if (j + 1 < count && depth == 2) {
        values[1] = problem_.passage.get(row + 1, width.first, width.count, second_row.data());
      }
      kernels_.pack_step(values, width.count, packed.data() + j / depth * tile_rows, kStepUnits * tile_rows);
    }
    for (int64_t panel = panels.first; panel < panels.first + panels.count; ++panel) {
      const uint32_t* right = exponentials(panel) + start / depth * kPanel;
      float* out = query_products_.data() + (panel * problem_.width + width.first) * kPanel;
      for_each_tile(width.count, tile_rows, [&](int64_t first, int rows) {
        kernels_.tile_by_steps(rows, {packed.data() + first * kStepUnits, 0, right, ceil_div(count, depth),
                                      out + first * kPanel, kPanel, segment.first + start > 0});
      });
    }
  }
}

void Chunk::multiply_queries(const Segment& segment, const RowResult* results, bool accumulate) {
  const int64_t blocks = ceil_div(segment.count, kColumnBlock);
  const double operations = 2.0 * panels_ * kPanel * segment.count * problem_.width;
  on_threads(blocks, operations, [&](const auto& next) {
    Scratch<uint32_t> packed(round_up(panels_ * kPanel / kernels_.depth, kBlock) * kColumnBlock);
    Scratch<float> scratch(problem_.query.scratch_size());
    for (int64_t i = next(); i >= 0; i = next()) {
      const int64_t first = i * kColumnBlock;
      const Segment block{segment.first + first, std::min(kColumnBlock, segment.count - first)};
      if (few_) {
        multiply_queries_few(block, segment.first, results);
      } else {
        multiply_queries_block(block, segment.first, packed.data(), accumulate);
      }
      add_target_gradients(block, results, scratch.data());
    }
  });
}

void Chunk::multiply_queries_block(const Segment& block, int64_t segment_first, uint32_t* packed, bool accumulate) {
  const int64_t panel_units = kPanel / kernels_.depth, units = panels_ * panel_units, width = problem_.width;
  for (int64_t panel = 0; panel < panels_; ++panel) {
    const int64_t unit = panel * panel_units;
    kernels_.transpose_exponentials(exponentials(panel) + (block.first - segment_first) / kernels_.depth * kPanel,
                                    block.count, panel + 1 < panels_ ? panel_units_ : 0,
                                    packed + unit / kBlock * kColumnBlock * kBlock + unit % kBlock);
  }
  for (int64_t d = 0; d < width; d += kPanel) {
    const int64_t columns = std::min<int64_t>(kPanel, width - d);
    const uint32_t* right = weighted_queries_.data() + d * units;
    for_each_tile(block.count, kernels_.tile_rows, [&](int64_t first, int rows) {
      Tile tile{packed + first * kBlock,
                kColumnBlock * kBlock,
                right,
                units,
                gradients_.passage + (block.first + first) * width + d,
                width,
                accumulate};
      if (columns == kPanel) return kernels_.tile_by_blocks(rows, tile);
      float edge[kPanel * 16];
      Tile whole = tile;
      whole.c = edge;
      whole.c_stride = kPanel;
      whole.accumulate = false;
      kernels_.tile_by_blocks(rows, whole);
      add_rows(edge, rows, columns, tile);
    });
  }
}

// The rank-one terms of the targets, in float32, while the block lies in cache.
void Chunk::add_target_gradients(const Segment& block, const RowResult* results, float* scratch) {
  const int64_t index = block.first / kColumnBlock;
  for (int64_t k = block_rows_[index]; k < block_rows_[index + 1]; ++k) {
    const int64_t i = rows_by_block_[k];
    const float* query = problem_.query.get(first_row_ + i, scratch);
    float* out = gradients_.passage + target_[i] * problem_.width;
    for (int64_t d = 0; d < problem_.width; ++d) out[d] += results[i].target_gradient * query[d];
  }
}

}  // namespace fastdense::cpu
