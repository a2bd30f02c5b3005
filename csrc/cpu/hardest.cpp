#include "cpu/hardest.h"

#include <algorithm>
#include <limits>

namespace fastdense::cpu {

Hardest::Hardest(const Problem& problem, const Kernels& kernels, int64_t count, int64_t* index, float* score)
    : problem_(problem),
      kernels_(kernels),
      count_(count),
      index_(index),
      score_(score),
      panel_(ceil_div(problem.rows, kPanel)) {
  std::fill_n(index_, problem.rows * count, -1);
  std::fill_n(score_, problem.rows * count, -std::numeric_limits<float>::infinity());
}

void Hardest::offer(int64_t first_row, const ScoredBlock& block) {
  constexpr float kNever = std::numeric_limits<float>::infinity();
  const int64_t first = first_row + block.panel * kPanel;
  const int64_t rows = std::min<int64_t>(kPanel, problem_.rows - first);
  int32_t found[kColumnBlock * kPanel];
  const std::lock_guard<std::mutex> lock(panel_[first / kPanel]);
  float least[kPanel];
  for (int64_t i = 0; i < kPanel; ++i) {
    least[i] = i < rows ? std::max(score_[(first + i + 1) * count_ - 1], kLeftOut / 2) : kNever;
  }
  const int64_t candidates = kernels_.at_least(block.scores, block.columns.count, least, found);
  for (int64_t k = 0; k < candidates; ++k) {
    insert(first + found[k] % kPanel, block.columns.first + found[k] / kPanel, block.scores[found[k]]);
  }
}

void Hardest::insert(int64_t row, int64_t column, float score) {
  int64_t* index = index_ + row * count_;
  float* scores = score_ + row * count_;
  int64_t place = count_;
  while (place > 0 && (scores[place - 1] < score || (scores[place - 1] == score && index[place - 1] > column))) --place;
  if (place == count_) return;
  std::move_backward(index + place, index + count_ - 1, index + count_);
  std::move_backward(scores + place, scores + count_ - 1, scores + count_);
  index[place] = column;
  scores[place] = score;
}

void Hardest::scale() {
  for (int64_t i = 0; i < problem_.rows * count_; ++i) score_[i] *= problem_.scale;
}

}  // namespace fastdense::cpu
