// From the sums over a row to its loss and to what its gradients are made of.
#pragma once

#include <cstdint>

namespace fastdense::cpu {

// Sums over the columns of a row other than the target's that take part; y is score - reference, both unscaled.
struct RowSums {
  double exponentials;  // of exp(scale * y)
  double moments;       // of exp(scale * y) * y
  double excess;        // of y; only with label smoothing
  float largest;        // y
  int64_t taking_part;  // columns, with the target's; only with label smoothing
};

struct RowInputs {
  float target_score;  // unscaled
  float reference;
  float weight;
  float scale;
  float log2_scale;
  float label_smoothing;
};

struct RowResult {
  double loss;            // weighted
  double scale_grad;      // weighted
  float log_normalizer;   // of scaled scores
  float target_score;     // scaled
  bool correct;           // the target scores higher than every other column that takes part
  float factor;           // an exponential times this is d loss / d score, but for label smoothing
  float smoothing_share;  // what label smoothing subtracts from an exponential
  float target_gradient;  // d loss / d score of the target
};

RowResult finish_row(const RowSums& others, const RowInputs& row);

}  // namespace fastdense::cpu
