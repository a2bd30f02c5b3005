// The target's column is kept out of the sums of the others, so that softmax - 1 there is -others / all, without the
// cancellation: a tiny loss keeps its relative precision.

#include "cpu/row_sums.h"

#include <cmath>
#include <limits>

namespace fastdense::cpu {
namespace {

constexpr double kLog2 = 0.693147180559945309417;

}  // namespace

RowResult finish_row(const RowSums& others, const RowInputs& row) {
  const double target = row.target_score - row.reference;
  const double target_log = target * row.log2_scale * kLog2;
  const double target_exponential = std::exp(target_log);
  double all = others.exponentials + target_exponential;
  // -inf at the target is no answer either, though its exponential is zero.
  if (!std::isfinite(row.target_score)) all = std::numeric_limits<double>::quiet_NaN();
  const double normalizer = target_exponential > others.exponentials
                                ? std::log1p(others.exponentials / target_exponential)
                                : std::log(all) - target_log;

  const bool smooth = row.label_smoothing > 0;
  const double smoothed = smooth ? row.label_smoothing / static_cast<double>(others.taking_part) : 0.0;
  const double excess = smooth ? others.excess - static_cast<double>(others.taking_part - 1) * target : 0.0;
  const double moment = (others.moments - others.exponentials * target) / all;
  const double weighted_scale = static_cast<double>(row.weight) * row.scale;

  RowResult result;
  result.loss = row.weight * (normalizer - smoothed * excess * row.scale);
  result.scale_grad = row.weight * (moment - smoothed * excess);
  result.target_score = row.target_score * row.scale;
  result.log_normalizer = static_cast<float>(normalizer + static_cast<double>(row.target_score) * row.scale);
  result.correct = static_cast<float>(target) > others.largest;
  result.factor = static_cast<float>(weighted_scale / all);
  result.smoothing_share = static_cast<float>(smoothed * all);
  result.target_gradient =
      static_cast<float>(weighted_scale * (row.label_smoothing - smoothed - others.exponentials / all));
  return result;
}

}  // namespace fastdense::cpu
