// The inner loops of the loss, compiled once per instruction set, and the memory layouts that they share.
//
// A product's inner dimension is counted in units of 32 bits: one float32, or two consecutive bfloat16. With K units:
//
//   panel   [K][32]              the right operand: for each unit, 32 columns side by side
//   blocks  [K / 32][rows][32]   the left operand by rows: each row's next 32 units side by side
//   steps                        the left operand by tiles of tile_rows rows, K * tile_rows units each, in the order in
//                                which the tile reads them: [K][tile_rows], or with AMX [K / 16][tile_rows][16]
//
// K is a multiple of unit_step; what fills it up is zero.
//
// Exponentials are stored as panels of 32 queries whose units are passages: the right operand of query_grad's product.
#pragma once

#include <cstdint>

namespace fastdense::cpu {

constexpr int kPanel = 32;      // columns of a tile; queries of a panel
constexpr int kBlock = 32;      // units of a row that lie together
constexpr int kRowsAtOnce = 8;  // passages that few queries meet at a time

// Stands for a score that does not take part: far below every other, yet no arithmetic on it overflows.
constexpr float kLeftOut = -1e38F;

// c[rows, 32] = a b, or += where accumulate.
struct PanelProduct {
  const uint32_t* a;
  int64_t a_stride;  // units from one block of 32 to the next, or of steps from one tile to the next
  const uint32_t* b;
  int64_t units;
  float* c;
  int64_t c_stride;
  bool accumulate;
};

// Sums over columns of one panel of queries. y is score - reference (unscaled), e = 2^(y * log2_scale).
struct PanelSums {
  double exponentials[kPanel];  // of e
  double moments[kPanel];       // of e * y
  double excess[kPanel];        // of y, if asked for
  float largest[kPanel];        // the largest y
  float left_out[kPanel];       // the number of columns that do not take part, if asked for
};

struct Exponentials {
  const float* scores;  // [columns][32]
  int64_t columns;
  const float* reference;  // [32]
  float log2_scale;        // scale / log 2
  bool count;              // excess and left_out are asked for
  uint32_t* out;           // [ceil(columns / depth)][32], or null
};

// Sums over rows of one column of scores, other than its own target's; y is score - reference (unscaled), and the
// reference is the largest score so far.
struct ColumnSums {
  float reference;
  double exponentials;  // of exp(scale * y)
  double moments;       // of exp(scale * y) * y
  double excess;        // of y
  double others;        // rows that take part
};

// d loss / d score where both directions' softmax meet; nothing where the score is kLeftOut.
struct TwoDirections {
  const float* scores;  // [columns][32]
  int64_t columns;
  float log2_scale;  // scale / log 2
  // factor * 2^((score - reference) * log2_scale) - share, for each row [32] and for each column [columns]
  const float* row_reference;
  const float* row_factor;
  const float* row_share;
  const float* column_reference;
  const float* column_factor;
  const float* column_share;
  uint32_t* out;  // [ceil(columns / depth)][32]
};

constexpr int kDropoutGroup = 64;  // values whose random numbers are made together

// A value is kept, times scale, where its random number of 32 bits is at least least_kept.
struct Dropout {
  uint64_t seed;
  uint32_t least_kept;
  float scale;
  bool from_bfloat16;  // else float32
  bool to_bfloat16;
};

struct Kernels {
  const char* name;
  int depth;            // elements in a unit: 1 (float32) or 2 (bfloat16)
  int unit_step;        // units that are multiplied, and packed to steps, at a time
  int tile_rows;        // the most rows of a tile
  int64_t inner_units;  // of the passages' gradients at a time: the left operand stays in the second-level cache

  void (*multiply_blocks)(int64_t rows, const PanelProduct& product);
  void (*multiply_steps)(int64_t rows, const PanelProduct& product);

  // Adds to sums.
  void (*exponentiate)(const Exponentials& work, PanelSums* sums);
  // Writes kLeftOut to scores [columns][32] where the column's id is the query's.
  void (*leave_out)(float* scores, int64_t columns, const int64_t* column_id, const int64_t* query_id);
  // The places in scores [columns][32] of those that are at least as large as least [32]; returns how many.
  int64_t (*at_least)(const float* scores, int64_t columns, const float* least, int32_t* found);
  // to [32] = the largest score of each row, or to itself where that is larger.
  void (*raise)(const float* scores, int64_t columns, float* to);
  // Adds one column's scores [32] of a panel, of which kLeftOut takes no part.
  void (*add_column)(const float* scores, float log2_scale, ColumnSums* sums);
  void (*combine_directions)(const TwoDirections& work);
  // Subtracts share [32] from the exponentials of one column: units [32], of which `part` counts the elements.
  void (*subtract)(uint32_t* units, int64_t part, const float* share);

  // Inputs (const void*) are float32 where depth is 1, and bfloat16 where it is 2.

  // values [width] to one row of blocks that lie a_stride apart.
  void (*pack_block_row)(const void* values, int64_t width, uint32_t* out, int64_t a_stride);
  // unit_step * depth rows of values [width] (null: zeros) to unit_step units of tiles that lie tile_stride apart.
  void (*pack_steps)(const void* const* values, int64_t width, uint32_t* out, int64_t tile_stride);
  // depth rows of values [width], times factor [depth], to one unit of panels that lie panel_stride apart; zero-filled.
  void (*pack_panel_step)(const void* const* values, const float* factor, int64_t width, uint32_t* out,
                          int64_t panel_stride);
  // count (at most 32) rows of values [width] to the first columns of a panel.
  void (*pack_panel)(const void* const* values, int count, int64_t width, uint32_t* out);
  // to[i] [width] = factor[i] * column i of a panel of float32 + value_factor[i] * values[i], for the first count
  // columns.
  void (*write_panel)(const float* panel, const float* factor, const void* const* values, const float* value_factor,
                      int count, int64_t width, float* const* to);
  // One panel of exponentials, columns long, to blocks of its columns' rows: out[column * 32 + unit], 32 / depth units.
  // What lies `ahead` units behind the panel is prefetched.
  void (*transpose_exponentials)(const uint32_t* panel, int64_t columns, int64_t ahead, uint32_t* out);

  float (*dot)(const void* a, const void* b, int64_t width);
  // to [width] += factor * values [width]
  void (*add_scaled)(float factor, const void* values, int64_t width, float* to);

  // The products of count (at most 32) queries with at most kRowsAtOnce passages, all of float32; weights and scores
  // are [passages][32].

  // scores = passages @ queries.T
  void (*score_rows)(int rows, const float* const* passages, const float* const* queries, int count, int64_t width,
                     float* scores);
  // to [count, width] = weights.T @ passages, or += where told to accumulate
  void (*add_rows)(int rows, const float* const* passages, const float* weights, int count, int64_t width, float* to,
                   bool accumulate);
  // to [passages, width] = weights @ queries, or += where told to accumulate
  void (*combine_rows)(int rows, const float* weights, const float* const* queries, int count, int64_t width, float* to,
                       bool accumulate);
  // to [width] = a * x [width] + b * y [width], all of float32
  void (*blend)(float a, const float* x, float b, const float* y, int64_t width, float* to);

  // to [count] = from [count], which starts with that group of 64 values, with some of them dropped.
  void (*drop_out)(const void* from, int64_t count, const Dropout& dropout, int64_t group, void* to);

  void (*widen_bfloat16)(const uint16_t* from, int64_t count, float* to);
  void (*widen_float16)(const uint16_t* from, int64_t count, float* to);
};

extern const Kernels kernels_generic;
#ifdef FASTDENSE_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx_bf16;
#endif

}  // namespace fastdense::cpu
