// One row of scores becomes one row of d loss / d (query . passage), in place, while it lies in cache.
#pragma once

#include <cstdint>

namespace fastdense::cpu {

// What is the same for every row of a problem.
struct RowShared {
  int64_t columns;            // M
  const int64_t* passage_id;  // [M], or null: nothing is left out
  float scale;
  float label_smoothing;
};

struct RowResult {
  float loss;            // unweighted
  float scale_grad;      // of the row's weighted loss
  float log_normalizer;  // log-sum-exp of the scaled scores that take part
  float target_score;    // scaled
  bool correct;          // the target scores higher than every other column that takes part
};

// row: [columns] dot products; on return d (weight * loss) / d (dot product). target: in [0, columns).
using RowKernel = RowResult (*)(float* row, int64_t target, float weight, const RowShared& shared);

// The same source (row_kernel.inc), compiled for several instruction sets.
RowResult row_kernel_generic(float* row, int64_t target, float weight, const RowShared& shared);
#ifdef FASTDENSE_X86
RowResult row_kernel_avx2(float* row, int64_t target, float weight, const RowShared& shared);
RowResult row_kernel_avx512(float* row, int64_t target, float weight, const RowShared& shared);
#endif

}  // namespace fastdense::cpu
