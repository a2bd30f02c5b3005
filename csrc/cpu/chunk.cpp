#include "cpu/chunk.h"

#include <cmath>

namespace fastdense::cpu {
namespace {

// Of an exponential, as a power of two: sums over 2^20 of them, times inputs of any usual size, stay finite.
constexpr float kLargestPower = 64.0F;
// A huge reference is off by the rounding of its difference from the first one; its own difference is exact.
constexpr int kMostReferences = 2;

}  // namespace

Chunk::Chunk(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients,
             Hardest* hardest)
    : problem_(problem),
      kernels_(kernels),
      hardest_(hardest),
      gradients_wanted_(gradients.wanted()),
      segment_columns_(plan.segment_columns),
      log2_scale_(problem.scale * kLog2E),
      products_(problem, plan, kernels, gradients),
      sums_(products_.groups() * plan.chunk_rows / kPanel),
      target_score_(plan.chunk_rows),
      reference_(plan.chunk_rows) {}

void Chunk::run(int64_t first_row, int64_t count, RowResult* results) {
  products_.load(first_row, count,
                 [&](int64_t i, const void* query, float* scratch) { refer_to_target(i, query, scratch); });
  sum_rows(results);
  if (!gradients_wanted_) return;
  products_.add_gradients(results, [&](const Segment& segment) {
    if (segment_columns_ < problem_.columns) score(products_.all_panels(), segment, true, nullptr);
    if (problem_.label_smoothing > 0) smooth(segment, results);
  });
}

// Exponentials are taken relative to the target's score, to which no pass over the row is needed. The sum of the row
// holds the target's own exponential, about 1, so nothing that underflows counts; what overflows is seen afterwards.
void Chunk::refer_to_target(int64_t i, const void* query, float* scratch) {
  if (i + 1 < products_.count()) {
    problem_.passage.prefetch(problem_.target[products_.first_row() + i + 1], 0, problem_.width);
  }
  reference_[i] = kernels_.dot(query, problem_.passage.get(products_.target(i), scratch), problem_.width);
}

// The sums of all rows, and their exponentials where those of all columns are kept.
void Chunk::sum_rows(RowResult* results) {
  const Segment all{0, problem_.columns};
  const bool keep = gradients_wanted_ && segment_columns_ >= problem_.columns;
  const int64_t panels = products_.panels(), count = products_.count();
  score(products_.all_panels(), all, keep, hardest_);
  total_sums();
  for (int turn = 0; turn < kMostReferences; ++turn) {
    const std::vector<int64_t> again = refer_to_largest();
    if (again.empty()) break;
    score(again, all, keep, nullptr);
    total_sums();
  }
  on_threads(panels, count * 1000.0, [&](const auto& next) {
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, count); ++i) results[i] = result_of(i);
    }
  });
}

void Chunk::score(const std::vector<int64_t>& panels, const Segment& segment, bool keep, Hardest* hardest) {
  products_.score(panels, segment, [&](const ScoredBlock& block) {
    PanelSums* sums = &sums_[block.group * products_.panels() + block.panel];
    if (block.first_of_group) {
      *sums = PanelSums{};
      std::fill_n(sums->largest, kPanel, kLeftOut);
    }
    products_.mask(block, target_score_.data());
    if (hardest) hardest->offer(products_.first_row(), block);
    uint32_t* out = keep ? products_.weights(block.panel) + block.offset / kernels_.depth * kPanel : nullptr;
    kernels_.exponentiate({block.scores, block.columns.count, reference_.data() + block.panel * kPanel, log2_scale_,
                           problem_.label_smoothing > 0, out},
                          sums);
  });
}

void Chunk::total_sums() {
  const int64_t panels = products_.panels();
  totals_.assign(panels, PanelSums{});
  on_threads(panels, products_.groups() * panels * kPanel * 8.0, [&](const auto& next) {
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      std::fill_n(totals_[panel].largest, kPanel, kLeftOut);
      for (int64_t group = 0; group < products_.groups(); ++group) add(sums_[group * panels + panel], &totals_[panel]);
    }
  });
}

// Where a score lies too far above the target's, the largest one becomes the row's reference: then every exponential
// lies in [0, 1]. So it does where all scores lie far below it: of huge scores the target's, which came from another
// product than the reference, is rounded otherwise. Returns the panels that must be scored once more.
std::vector<int64_t> Chunk::refer_to_largest() {
  std::vector<int64_t> again;
  for (int64_t i = 0; i < products_.count(); ++i) {
    const float largest = std::max(totals_[i / kPanel].largest[i % kPanel], target_score_[i] - reference_[i]);
    if (!(std::abs(largest) * log2_scale_ > kLargestPower)) continue;
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
      {target_score_[i], reference_[i], problem_.weight[products_.first_row() + i], problem_.scale, log2_scale_,
       problem_.label_smoothing});
}

// Label smoothing lowers every column that takes part by the same share; rare enough for a pass of its own.
void Chunk::smooth(const Segment& segment, const RowResult* results) {
  const int64_t block_columns = products_.block_columns(), blocks = ceil_div(segment.count, block_columns);
  on_threads(blocks, products_.count() * segment.count, [&](const auto& next) {
    for (int64_t block = next(); block >= 0; block = next()) {
      const int64_t first = block * block_columns;
      const Segment columns{segment.first + first, std::min(block_columns, segment.count - first)};
      for (int64_t panel = 0; panel < products_.panels(); ++panel) smooth_columns(panel, columns, first, results);
    }
  });
}

void Chunk::smooth_columns(int64_t panel, const Segment& columns, int64_t offset, const RowResult* results) {
  const int64_t rows = std::min<int64_t>(kPanel, products_.count() - panel * kPanel);
  const int64_t row = panel * kPanel;
  float share[kPanel] = {};
  for (int64_t j = columns.first; j < columns.first + columns.count; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      const bool left_out =
          problem_.passage_id ? problem_.passage_id[j] == products_.target_id(row + i) : j == products_.target(row + i);
      share[i] = left_out ? 0.0F : results[row + i].smoothing_share;
    }
    const int64_t column = offset + j - columns.first;
    kernels_.subtract(products_.weights(panel) + column / kernels_.depth * kPanel, column % kernels_.depth, share);
  }
}

}  // namespace fastdense::cpu
