// The columns with the highest scores of each row, among those that take part other than the target.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/products.h"

namespace fastdense::cpu {

// Equal scores come in the order of their columns, so it does not show which thread offered which block first.
class Hardest {
 public:
  // index, score: [rows, count], the results, kept in order all the time. They start as -1 and -inf.
  Hardest(const Problem& problem, const Kernels& kernels, int64_t count, int64_t* index, float* score);

  // Looks at masked scores of rows first_row and on; any thread may call it at any time.
  void offer(int64_t first_row, const ScoredBlock& block);
  // At the end: unscaled scores become scaled ones.
  void scale();

 private:
  void insert(int64_t row, int64_t column, float score);

  const Problem& problem_;
  const Kernels& kernels_;
  const int64_t count_;
  int64_t* const index_;
  float* const score_;
  std::vector<std::mutex> panel_;  // one for each 32 rows
};

}  // namespace fastdense::cpu
