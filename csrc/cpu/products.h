// One chunk of queries and its three products:
//
//   scores            passage @ query.T, a block of passages x 32 queries at a time, handed over while in cache
//   query products    weights @ passage
//   passage products  weights.T @ (factor * query)
//
// The weights are what scores have become (a softmax's exponentials, say). kernels.h has the layouts. Every sum is
// taken in an order that the problem alone decides, so the same bits come from any number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/problem.h"
#include "cpu/row_sums.h"
#include "cpu/scratch.h"
#include "cpu/tasks.h"

namespace fastdense::cpu {

struct Segment {
  int64_t first;
  int64_t count;
};

// Scores of one panel of queries with a block of passages, in cache.
struct ScoredBlock {
  int64_t group;        // of columns: one task does all its blocks, in order
  bool first_of_group;  // nothing else of this group and panel came before
  int64_t panel;
  Segment columns;
  int64_t offset;  // of the columns in the segment that is being scored
  float* scores;   // [columns][32]
};

// Adds to total, but for the largest, of which the larger one stays.
void add(const PanelSums& sums, PanelSums* total);

class Products {
 public:
  using VisitQuery = std::function<void(int64_t i, const void* query, float* scratch)>;
  using VisitScores = std::function<void(const ScoredBlock&)>;

  Products(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients);

  // Takes up a chunk; visit, which may be empty, sees each query, with scratch for one passage.
  void load(int64_t first_row, int64_t count, const VisitQuery& visit);
  void score(const std::vector<int64_t>& panels, const Segment& segment, const VisitScores& visit);
  // Writes kLeftOut to the scores that take no part: of the targets (after a look at them), of columns with a target's
  // id, and of the rows that only fill the last panel.
  void mask(const ScoredBlock& block, float* target_score) const;
  // Both gradients. fill(segment) writes the weights of a segment's columns: d loss / d score = factor * weight, but
  // for the targets, whose gradients are given.
  void add_gradients(const RowResult* results, const std::function<void(const Segment&)>& fill);

  uint32_t* weights(int64_t panel) { return weights_.data() + panel * panel_units_; }
  std::vector<int64_t> all_panels() const;
  int64_t first_row() const { return first_row_; }
  int64_t count() const { return count_; }
  int64_t panels() const { return panels_; }
  int64_t block_columns() const { return block_columns_; }
  int64_t groups() const { return groups_; }
  int64_t target(int64_t i) const { return target_[i]; }
  int64_t target_id(int64_t i) const { return target_id_[i]; }

 private:
  void pack_queries(const void* const* values, int64_t rows, uint32_t* out);
  void pack_passages(const Segment& block, uint32_t* packed, float* scratch);
  void score_panel(int64_t panel, const Segment& block, const uint32_t* packed, float* scores);
  void pack_weighted_queries(const RowResult* results);
  void sort_targets();
  void multiply_passages(const Segment& segment);
  void multiply_passages_part(const Segment& segment, const Segment& width, const Segment& panels);
  void pack_passage_steps(const Segment& passages, const Segment& width, int64_t stride, uint32_t* packed,
                          float* scratch);
  void multiply_queries(const Segment& segment, const RowResult* results, bool accumulate);
  void multiply_queries_block(const Segment& block, int64_t segment_first, uint32_t* packed, bool accumulate);
  void pack_weights(const Segment& block, int64_t segment_first, const Segment& panels, uint32_t* packed);
  void multiply_queries_panels(const Segment& block, const Segment& panels, const uint32_t* packed, bool accumulate);
  int64_t panels_at_once() const;
  int rows_of_panel(int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(kPanel, count_ - panel * kPanel));
  }
  int64_t rows_multiplied(int64_t panels) const { return few_ ? count_ : panels * kPanel; }
  void add_target_gradients(const Segment& block, const RowResult* results, float* scratch);
  void write_query_gradients(const RowResult* results);

  // The same three products for kFewQueries or fewer (few_queries.cpp).
  void score_few(int64_t panel, const Segment& block, float* scores, float* scratch);
  void multiply_passages_few(const Segment& segment);
  void multiply_queries_few(const Segment& block, int64_t segment_first, const RowResult* results, bool accumulate);

  int take_rows_few(const Segment& block, int64_t row, const Segment& width, float* scratch,
                    const float** passages) const;
  void write_query_gradients_few(const RowResult* results);
  // From a column of the segment on, [columns][32].
  const float* few_weights(int64_t panel, int64_t column) {
    return reinterpret_cast<const float*>(weights(panel) + column * kPanel);
  }

  const Problem& problem_;
  const Kernels& kernels_;
  const Gradients gradients_;
  const bool few_;
  const int64_t segment_columns_;
  const int64_t block_columns_;
  const int64_t panel_units_;  // of one panel's weights
  const int64_t width_units_;  // of a row of the inputs
  const int64_t group_columns_;
  const int64_t groups_;
  const int64_t part_width_;  // of the passages that a task multiplies with few queries' weights

  Scratch<uint32_t> weights_;           // [panels][segment / depth][32]
  Scratch<uint32_t> queries_;           // [panels][width / depth][32]; of few queries those that had to be made float32
  Scratch<uint32_t> weighted_queries_;  // [width / 32][rows / depth][32]
  Scratch<float> query_products_;       // [panels][width][32]; of few queries, for each part of the width, [rows][part]
  const float* few_queries_[kFewQueries];

  int64_t first_row_ = 0;
  int64_t count_ = 0;
  int64_t panels_ = 0;
  std::vector<int64_t> target_;         // -1 in rows that only fill the last panel
  std::vector<int64_t> rows_by_block_;  // rows in the order of their targets' blocks of passages
  std::vector<int64_t> block_rows_;     // where a block's rows begin among them
  std::vector<int64_t> target_id_;      // passage_id of the target
};

}  // namespace fastdense::cpu
