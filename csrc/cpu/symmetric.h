// The mean of the losses in both directions, in one walk over the scores and, for those that were not kept, a second:
// (8 - 2 f) N M D operations, where f is the kept part.
//
//   first walk    scores give the sums of rows (each query's softmax over passages) and of columns (each query's target
//                 passage's softmax over queries); whole chunks of masked scores are kept while memory lasts
//   second walk   scores, kept or computed again, become the gradient of both directions at once
//
// Sums are relative to the largest score so far, so that no score is too large or too small. A row's or a column's
// target is left out of its sums, as in row_sums.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/hardest.h"
#include "cpu/products.h"

namespace fastdense::cpu {

class Symmetric {
 public:
  // keep_bytes: for scores. hardest may be null.
  Symmetric(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients,
            int64_t keep_bytes, Hardest* hardest);

  // results [N]; by-products are those of the direction from query to passage.
  void run(RowResult* results);

 private:
  // Sums over some columns of one panel of rows, relative to the largest score among them.
  struct RunningSums {
    PanelSums sums;
    float reference[kPanel];
    int64_t columns;
  };
  // factor * exp(scale * (score - reference)) - share is one direction's gradient.
  struct Direction {
    std::vector<float> reference, factor, share;
  };

  void sort_queries();
  void sum_chunk(int64_t chunk, RowResult* results);
  void add_to_row_sums(const ScoredBlock& block);
  void add_to_column_sums(const ScoredBlock& block);
  void add_query_of_column(const ScoredBlock& block, const float* scores, int64_t k, bool alone);
  void finish_rows(RowResult* results);
  void finish_row_of(int64_t row, const RunningSums& total, int lane, RowResult* results);
  void finish_columns(RowResult* results);
  void finish_column(int64_t column, RowResult* results);
  double finish_shared_column(int64_t column, float reference, double share_sum, RowResult* results) const;
  RowInputs inputs(int64_t query, float reference) const;
  float share(int64_t query, double taking_part) const;
  void add_gradients(int64_t chunk, RowResult* results);
  void fill_block(const ScoredBlock& block);

  void load(int64_t chunk);
  bool keeps(int64_t chunk) const { return chunk < kept_chunks_; }
  float* kept(int64_t chunk, int64_t panel, int64_t column);
  static void refer_to(const float* reference, double scale, RunningSums* sums);

  const Problem& problem_;
  const Plan plan_;
  const Kernels& kernels_;
  Hardest* const hardest_;
  const bool gradients_wanted_;
  const int64_t chunks_;
  const int64_t kept_chunks_;
  const float log2_scale_;

  Products products_;                    // their weights are gradients of scores
  Scratch<float> kept_;                  // [kept chunks][panels][columns][32], masked
  Scratch<RunningSums> row_sums_;        // [groups][panels]
  std::vector<ColumnSums> column_sums_;  // [N]: of each query's target passage over the other queries
  std::vector<float> target_score_;      // [N], unscaled
  std::vector<int64_t> queries_;         // in the order of their targets
  std::vector<int64_t> queries_of_;      // [M + 1]: where a passage's begin among them
  Direction rows_;                       // [N, rounded up]
  Direction columns_;                    // [M]
};

}  // namespace fastdense::cpu
