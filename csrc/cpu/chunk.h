// The loss from query to passage, one chunk of queries at a time: scores become exponentials as they arrive, and their
// sums give loss and gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/hardest.h"
#include "cpu/products.h"

namespace fastdense::cpu {

class Chunk {
 public:
  // hardest may be null.
  Chunk(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients, Hardest* hardest);

  // results [count]
  void run(int64_t first_row, int64_t count, RowResult* results);

 private:
  void refer_to_target(int64_t i, const void* query, float* scratch);
  void sum_rows(RowResult* results);
  void score(const std::vector<int64_t>& panels, const Segment& segment, bool keep, Hardest* hardest);
  void total_sums();
  std::vector<int64_t> refer_to_largest();
  RowResult result_of(int64_t i) const;
  void smooth(const Segment& segment, const RowResult* results);
  void smooth_columns(int64_t panel, const Segment& columns, int64_t offset, const RowResult* results);

  const Problem& problem_;
  const Kernels& kernels_;
  Hardest* const hardest_;
  const bool gradients_wanted_;
  const int64_t segment_columns_;
  const float log2_scale_;

  Products products_;                // their weights are exponentials
  Scratch<PanelSums> sums_;          // [groups][panels]
  std::vector<PanelSums> totals_;    // [panels]
  std::vector<float> target_score_;  // unscaled
  std::vector<float> reference_;
};

}  // namespace fastdense::cpu
