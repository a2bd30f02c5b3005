// A tile of 128 x 128 scores by the tensor memory accelerator and wgmma: two warpgroups multiply 64 rows each from
// three stages of 64 columns in shared memory. To be included after a file with the machine's functions (hopper.cuh).
//
// A block's registers and shared memory fit twice into a multiprocessor, so that one block's exponentials run beside
// the other's products. Therefore no warp does nothing but fill stages: with a ninth one a thread would have 96
// registers instead of 128, too few for 64 scores and their exponentials. One of the threads that multiply does it.
#pragma once

#include "cuda/tile.cuh"

namespace fastdense::cuda {

constexpr int kWgmmaStages = 3;
constexpr int kBarrierBytes = 2 * kWgmmaStages * static_cast<int>(sizeof(PhaseBarrier));
constexpr int kWgmmaSharedBytes = kWgmmaStages * kStageBytes + kBarrierBytes;
constexpr int kWgmmaRows = 64;
constexpr int kWarpgroup = 128;
constexpr int kDepth = 16;  // of one multiply_add

// What Matrix objects are made of: query and passage.
struct Operands {
  Matrix query;
  Matrix passage;
};

// A thread's part of a tile: two columns in each of sixteen blocks of 8, two rows. Each warp has 16 rows.
struct WgmmaScores {
  static constexpr int kWarpsAcross = 1;
  static constexpr int kRowBlocks = 1;
  static constexpr int kColumnBlocks = kTileColumns / 8;

  float of[kRowBlocks][kColumnBlocks][4];

  FASTDENSE_DEVICE static int row(int, int half) {
    return thread_index() / kWarp * 16 + half * 8 + thread_index() % kWarp / 4;
  }
  FASTDENSE_DEVICE static int warp_column() { return 0; }
  FASTDENSE_DEVICE static int column(int block, int of_two) { return block * 8 + thread_index() % 4 * 2 + of_two; }
};

FASTDENSE_DEVICE char* stage_of(int step) { return shared_memory() + step % kWgmmaStages * kStageBytes; }
// Ends a phase when a step's operands are there.
FASTDENSE_DEVICE PhaseBarrier* filled(int step) {
  return reinterpret_cast<PhaseBarrier*>(shared_memory() + kWgmmaStages * kStageBytes) + step % kWgmmaStages;
}
// Ends a phase when all warps have multiplied them.
FASTDENSE_DEVICE PhaseBarrier* used(int step) { return filled(step) + kWgmmaStages; }
// Of the phase in which a step has its stage.
FASTDENSE_DEVICE int parity_of(int step) { return step / kWgmmaStages % 2; }

// By all threads of the block.
FASTDENSE_DEVICE void prepare_stages() {
  if (thread_index() == 0) {
    for (int stage = 0; stage < kWgmmaStages; ++stage) {
      initialize(filled(stage), 1);
      initialize(used(stage), kThreads / kWarp);
    }
    show_barriers_to_copies();
  }
  barrier();
}

// By one thread.
FASTDENSE_DEVICE void fill_stage(const Tile& tile, const Operands& operands, int step) {
  arrive_and_expect(filled(step), kStageBytes);
  copy_box(stage_of(step), operands.query, tile.first_row, step * kStepWidth, filled(step));
  copy_box(stage_of(step) + kOperandBytes, operands.passage, tile.first_column, step * kStepWidth, filled(step));
}

// The descriptor of 16 columns of a swizzled box from a row on, a multiple of 8: address, (unused) offset, offset of
// eight rows in units of 16 bytes; 1 for the swizzle of 128 bytes. The swizzle permutes pieces of 16 bytes by bits 7 to
// 9 of the address, so that columns within the 128 bytes are reached by adding their bytes.
FASTDENSE_DEVICE uint64_t descriptor(const char* box, int row, int column) {
  constexpr uint64_t unused = 1, eight_rows = 8 * kRowBytes / 16, swizzle = 1;
  const uint64_t address = shared_address(box) + row * kRowBytes + column * 2;
  return (address >> 4) | unused << 16 | eight_rows << 32 | swizzle << 62;
}

FASTDENSE_DEVICE void multiply_step(WgmmaScores& scores, int step) {
  const int first_row = thread_index() / kWarpgroup * kWgmmaRows;
#pragma unroll
  for (int k = 0; k < kStepWidth; k += kDepth) {
    multiply_add(scores.of[0], descriptor(stage_of(step), first_row, k),
                 descriptor(stage_of(step) + kOperandBytes, 0, k));
  }
}

// All dot products of a tile, times the scale. Rows and columns beyond the end have 0. Afterwards shared memory is
// free.
FASTDENSE_DEVICE WgmmaScores scores_of(const Chunk& chunk, const Tile& tile, const Operands& operands) {
  WgmmaScores scores{};
  const int steps = steps_of(chunk);
  const bool fills = thread_index() == 0;
  prepare_stages();
  for (int step = 0; fills && step < kWgmmaStages && step < steps; ++step) fill_stage(tile, operands, step);
  for (int step = 0; step < steps; ++step) {
    wait_for_phase(filled(step), parity_of(step));
    join_warp();
    begin_products();
    multiply_step(scores, step);
    close_product_group();
    wait_for_products<1>();  // this warp is done with the step before, and its stage can get another
    if (step > 0 && thread_index() % kWarp == 0) arrive(used(step - 1));
    if (fills && step > 0 && step - 1 + kWgmmaStages < steps) {
      wait_for_phase(used(step - 1), parity_of(step - 1));
      fill_stage(tile, operands, step - 1 + kWgmmaStages);
    }
  }
  join_warp();
  wait_for_products<0>();
  settle(scores.of[0]);
  barrier();
  multiply(scores, *chunk.scale);
  return scores;
}

}  // namespace fastdense::cuda
