// What the operator was asked, and how its work is cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm/kernels.h"
#include "cpu/rows.h"

namespace fastdense::cpu {

struct Problem {
  Rows query;
  Rows passage;
  int64_t rows;               // N
  int64_t columns;            // M
  int64_t width;              // D
  const int64_t* target;      // [N], each in [0, M)
  const int64_t* passage_id;  // [M], or null: nothing is left out
  const float* weight;        // [N]: what the loss of each row is multiplied by
  float scale;
  float label_smoothing;
};

// Gradients that are wanted; null where not.
struct Gradients {
  float* query;    // [N, D]
  float* passage;  // [M, D]

  bool wanted() const { return query != nullptr || passage != nullptr; }
};

// So few queries that packing would cost more than it saves: inputs are read where they lie (few_queries.cpp). And so
// few of bfloat16 that tiles of 32 would mostly multiply zeros: they are taken as float32.
constexpr int64_t kFewQueries = 64;
constexpr int64_t kFewOfBfloat16 = 8;
constexpr int64_t kFewColumns = 16;  // the fewest passages of a block then

inline bool are_few(int64_t rows, const Kernels& kernels) { return rows <= kFewQueries && kernels.depth == 1; }

constexpr float kLog2E = 1.44269504088896F;
constexpr int64_t kColumnBlock = 112;  // the most passages of a block: packed, they stay in the second-level cache

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Queries are taken in chunks. The exponentials of a chunk are kept for all passages, or, where that would leave too
// few queries for the traffic that every chunk costs, for one segment of the passages at a time: then the rows' sums
// come from a pass of their own.
struct Plan {
  int64_t chunk_rows;       // a multiple of kPanel
  int64_t segment_columns;  // all of them, or a multiple of block_columns
  int64_t block_columns;    // passages that are scored at a time, in a task of its own
};

// Of few passages so few that threads find enough blocks: as the problem has it, not the number of threads, on which no
// sum may depend.
inline int64_t block_columns(int64_t rows, int64_t columns, const Kernels& kernels) {
  constexpr int64_t kBlocks = 16;
  const int64_t step = are_few(rows, kernels) ? kFewColumns : kernels.tile_rows;
  return std::min(kColumnBlock, round_up(std::max<int64_t>(1, ceil_div(columns, kBlocks)), step));
}

inline Plan make_plan(int64_t rows, int64_t columns, int64_t width, const Kernels& kernels, int64_t chunk_bytes) {
  constexpr int64_t kOperandSize = 1 << 20;  // elements of the packed queries
  constexpr int64_t kFewRows = 128;
  const int64_t units = std::max<int64_t>(kPanel, chunk_bytes / 4);
  const int64_t most = std::max<int64_t>(kPanel, kOperandSize / std::max<int64_t>(1, width));
  const int64_t block = block_columns(rows, columns, kernels);
  const int64_t wanted = std::min(std::max<int64_t>(1, rows), most);
  int64_t chunk = units / ceil_div(columns, kernels.depth);
  int64_t segment = columns;
  if (chunk < std::min(wanted, kFewRows)) {
    chunk = std::min(4 * kFewRows, units / ceil_div(block, kernels.depth));
    chunk = std::max<int64_t>(kPanel, std::min(chunk, round_up(wanted, kPanel)) / kPanel * kPanel);
    segment = std::max<int64_t>(1, units * kernels.depth / chunk / block) * block;
    segment = std::min(segment, columns);
  }
  chunk = std::max<int64_t>(kPanel, std::min(chunk, round_up(wanted, kPanel)) / kPanel * kPanel);
  const int64_t chunks = std::max<int64_t>(1, ceil_div(rows, chunk));
  return {round_up(std::max<int64_t>(1, ceil_div(rows, chunks)), kPanel), segment, block};
}

}  // namespace fastdense::cpu
