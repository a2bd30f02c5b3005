// The arguments of the kernels of csrc/cuda/score_tile.cuh. bfloat16 is kept as its bits.
#pragma once

#include <cstdint>

namespace fastdense::cuda {

constexpr int kTileRows = 128;
constexpr int kTileColumns = 128;

// Some rows of a problem, and all passages. "Others" are a row's columns that take part in it, but the target.
struct Chunk {
  const uint16_t* query;    // [rows, width]; rows 16-byte aligned, width a multiple of 8
  const uint16_t* passage;  // [columns, width], likewise
  int64_t query_stride;
  int64_t passage_stride;
  int rows;
  int columns;
  int width;
  const int32_t* target;  // [rows], in range
  const int32_t* label;   // [columns]: columns with the label of a row's target take no part; or null
  const float* scale;     // []
};

// For each block of kTileColumns columns, [blocks, rows]: the others' largest score and sum of exp(score - largest).
// A block of rows none of which is wanted is left as it was.
struct RowMaxima {
  const int8_t* wanted;  // [rows]
  float* maxima;
  float* sums;
};

struct ExponentialResults {
  const float* offset;     // [rows]
  const float* reference;  // [rows]
  uint16_t* stored;        // [rows, stride]: exp(score - offset) of the others, 0 elsewhere; rows 16-byte aligned
  int64_t stride;          // columns up to the next multiple of 8, at least
  float* target_score;     // [rows], from the same product, so that equal columns compare as equal
  // [4, blocks, rows]: the others' largest score, the sum of their exponentials, the sum of those as stored, and the
  // sum of the exponentials times (score - reference).
  float* partials;
};

// stored becomes stored * gain - share in each row's other columns.
struct Smoothing {
  uint16_t* stored;  // [rows, stride]
  int64_t stride;
  const float* gain;   // [rows]
  const float* share;  // [rows]
};

}  // namespace fastdense::cuda
