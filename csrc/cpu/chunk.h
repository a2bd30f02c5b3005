// One chunk of queries: its exponentials, their sums, and its part of the gradients.
//
//   score           scores of a block of passages x 32 queries, in cache, become exponentials   (product 1, fused)
//   query products  exponentials @ passage                                                       (product 2)
//   passage products  exponentials.T @ (factor * query)                                          (product 3)
//
// kernels.h has the layouts. Every sum is taken in an order that the problem alone decides, so the bits of all results
// are the same for any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/problem.h"
#include "cpu/row_sums.h"
#include "cpu/tasks.h"

namespace fastdense::cpu {

struct Segment {
  int64_t first;
  int64_t count;
};

class Chunk {
 public:
  Chunk(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients);

  // results [count]
  void run(int64_t first_row, int64_t count, RowResult* results);

 private:
  void pack_queries();
  void refer_to_target(int64_t i, const float* query, float* scratch);
  void sort_targets();
  void sum_rows(RowResult* results);
  void total_sums();
  std::vector<int64_t> refer_to_largest();
  RowResult result_of(int64_t i) const;
  std::vector<int64_t> all_panels() const;
  void pack_weighted_queries(const RowResult* results);
  void smooth(const Segment& segment, const RowResult* results);
  void smooth_columns(int64_t panel, const Segment& columns, int64_t offset, const RowResult* results);

  void score(const std::vector<int64_t>& panels, const Segment& segment, bool keep);
  void pack_passages(const Segment& block, uint32_t* packed, float* scratch);
  void score_panel(int64_t panel, const Segment& block, const uint32_t* packed, float* scores, uint32_t* out,
                   PanelSums* sums);
  void take_out_targets(int64_t panel, const Segment& block, float* scores);

  void multiply_passages(const Segment& segment);
  void multiply_passages_part(const Segment& segment, const Segment& width, const Segment& panels);
  void multiply_queries(const Segment& segment, const RowResult* results, bool accumulate);
  void multiply_queries_block(const Segment& block, int64_t segment_first, uint32_t* packed, bool accumulate);
  void add_target_gradients(const Segment& block, const RowResult* results, float* scratch);
  void write_query_gradients(const RowResult* results);

  // The same three products for kFewQueries or fewer (few_queries.cpp).
  void score_few(const Segment& block, float* scores, float* scratch);
  void multiply_passages_few(const Segment& segment);
  void multiply_queries_few(const Segment& block, int64_t segment_first, const RowResult* results);

  const float* few_queries() const { return reinterpret_cast<const float*>(queries_.data()); }
  uint32_t* exponentials(int64_t panel) { return exponentials_.data() + panel * panel_units_; }

  const Problem& problem_;
  const Kernels& kernels_;
  const Gradients gradients_;
  const bool few_;
  const int64_t segment_columns_;
  const int64_t panel_units_;  // of one panel's exponentials
  const int64_t width_units_;  // of a row of the inputs
  const int64_t groups_;       // of columns that share their sums
  float log2_scale_;

  Scratch<uint32_t> exponentials_;      // [panels][segment / depth][32]
  Scratch<uint32_t> queries_;           // [panels][width / depth][32]; of few queries [rows][width]
  Scratch<uint32_t> weighted_queries_;  // [width / 32][rows / depth][32]
  Scratch<float> query_products_;       // [panels][width][32]
  Scratch<PanelSums> sums_;             // [groups][panels]
  std::vector<PanelSums> totals_;       // [panels]

  int64_t first_row_ = 0;
  int64_t count_ = 0;
  int64_t panels_ = 0;
  std::vector<int64_t> target_;         // -1 in rows that only fill the last panel
  std::vector<int64_t> rows_by_block_;  // rows in the order of their targets' blocks of kColumnBlock passages
  std::vector<int64_t> block_rows_;     // where a block's rows begin among them
  std::vector<int64_t> target_id_;      // passage_id of the target
  std::vector<float> target_score_;     // unscaled
  std::vector<float> reference_;
};

}  // namespace fastdense::cpu
