// The functions of csrc/cuda/ampere.cuh for a CPU, lane by lane: each thread of a block is a fiber, the instructions of
// a warp take effect when all of its lanes have come to them. A copy takes effect as early or as late as it may, shared
// memory begins full of nan, and the machine counts what a GPU would be slow at or refuse.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define FASTDENSE_DEVICE inline

namespace emulation {

constexpr int kLanes = 32;
constexpr int kSharedAlignment = 1024;

struct Copy {
  char* to;
  const void* from;
  bool valid;
};

// A meeting of threads: the last to come computes, and all go on.
struct Meeting {
  int arrived = 0;
  long round = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  bool done = false;
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);
};

struct Warp {
  Meeting meeting;
  const char* rows[kLanes];
  uint32_t matrices[kLanes][4];
  uint32_t a[kLanes][4], b[kLanes][2];
  float sums[kLanes][4];
  float values[kLanes];
};

struct Machine {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting block;
  bool any = false, any_before = false;
  std::vector<char> shared;
  ucontext_t scheduler;
  std::function<void()> body;
  int current = 0;
  int64_t block_index = 0;
  bool copies_late = false;
  long bank_conflicts = 0;
  long progress = 0;  // grows whenever a thread gets further
};

inline Machine* machine = nullptr;

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "emulation: %s (thread %d)\n", reason, machine->current);
  std::abort();
}

inline Thread& self() { return machine->threads[machine->current]; }
inline Warp& warp() { return machine->warps[machine->current / kLanes]; }
inline int lane() { return machine->current % kLanes; }

inline void give_way() { swapcontext(&self().context, &machine->scheduler); }

template <typename Compute>
void meet(Meeting& meeting, int count, Compute compute) {
  const long round = meeting.round;
  ++machine->progress;
  if (++meeting.arrived == count) {
    compute();
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  while (meeting.round == round) give_way();
  ++machine->progress;
}

inline void perform(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

inline void run_fiber() {
  const int index = machine->current;
  machine->body();
  machine->current = index;
  self().done = true;
  ++machine->progress;
  give_way();
}

// Run a warp as far as it comes: until all of its threads are done or wait for others.
inline void run_warp(int index, bool falling) {
  for (long before = -1; before != machine->progress;) {
    before = machine->progress;
    for (int i = 0; i < kLanes; ++i) {
      machine->current = index * kLanes + (falling ? kLanes - 1 - i : i);
      if (!self().done) swapcontext(&machine->scheduler, &self().context);
    }
  }
}

// Run a kernel's body for each block in turn. Its warps go on in rising or falling order, each as far ahead of the
// others as the barriers let it.
inline long run(int64_t blocks, int threads, int shared_bytes, bool copies_late, bool falling,
                const std::function<void()>& body) {
  Machine here;
  machine = &here;
  here.threads.resize(threads);
  here.copies_late = copies_late;
  here.body = body;
  for (int64_t block = 0; block < blocks; ++block) {
    here.block_index = block;
    here.warps.assign(threads / kLanes, Warp());
    here.block = Meeting();
    here.shared.assign(shared_bytes + kSharedAlignment, static_cast<char>(0xff));  // nan in every format
    for (int i = 0; i < threads; ++i) {
      Thread& thread = here.threads[i];
      thread.done = false;
      thread.groups.assign(1, {});
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, run_fiber, 0);
    }
    const int warps = threads / kLanes;
    const auto unfinished = [](const Thread& thread) { return !thread.done; };
    while (std::any_of(here.threads.begin(), here.threads.end(), unfinished)) {
      const long before = here.progress;
      for (int i = 0; i < warps; ++i) run_warp(falling ? warps - 1 - i : i, falling);
      if (here.progress == before) fail("no thread can go on");
    }
  }
  machine = nullptr;
  return here.bank_conflicts;
}

// Eight rows of 16 bytes that are read at once must lie in different banks.
inline void count_bank_conflicts(const char* const (&rows)[kLanes]) {
  for (int first = 0; first < kLanes; first += 8) {
    unsigned seen = 0;
    for (int i = first; i < first + 8; ++i) {
      const unsigned bank = 1U << (reinterpret_cast<uintptr_t>(rows[i]) / 16 % 8);
      if (seen & bank) ++machine->bank_conflicts;
      seen |= bank;
    }
  }
}

inline float from_bfloat16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float element(const uint32_t word, int of_two) {
  return from_bfloat16(of_two == 0 ? word & 0xffffU : word >> 16);
}

// PTX ISA, "Matrix fragments for mma.m16n8k16": group = lane / 4, in_group = lane % 4.
inline void multiply_add(Warp& warp) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = (i / 2) % 2 == 0 ? group : group + 8;
      const int column = in_group * 2 + i % 2 + (i < 4 ? 0 : 8);
      a[row][column] = element(warp.a[lane][i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) b[in_group * 2 + i % 2 + (i < 2 ? 0 : 8)][group] = element(warp.b[lane][i / 2], i % 2);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + i % 2;
      double sum = warp.sums[lane][i];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      warp.sums[lane][i] = static_cast<float>(sum);
    }
  }
}

}  // namespace emulation

namespace fastdense::cuda {

inline int thread_index() { return emulation::machine->current; }
inline int64_t block_index() { return emulation::machine->block_index; }

inline char* shared_memory() {
  using emulation::kSharedAlignment;
  const auto address = reinterpret_cast<uintptr_t>(emulation::machine->shared.data());
  return reinterpret_cast<char*>((address + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment);
}

template <typename Compute>
void meet_block(Compute compute) {
  auto& machine = *emulation::machine;
  emulation::meet(machine.block, static_cast<int>(machine.threads.size()), compute);
}

inline void barrier() {
  meet_block([] {});
}

inline bool any_in_block(bool mine) {
  auto& machine = *emulation::machine;
  machine.any |= mine;
  meet_block([&machine] {
    machine.any_before = machine.any;
    machine.any = false;
  });
  return machine.any_before;
}

inline float from_lane_xor(float mine, int mask) {
  auto& warp = emulation::warp();
  warp.values[emulation::lane()] = mine;
  emulation::meet(warp.meeting, emulation::kLanes, [] {});
  const float other = warp.values[emulation::lane() ^ mask];
  emulation::meet(warp.meeting, emulation::kLanes, [] {});
  return other;
}

inline void copy_16_bytes(char* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulation::fail("a copy of 16 bytes is not aligned");
  }
  const emulation::Copy copy{to, from, valid};
  emulation::self().groups.back().push_back(copy);
  if (!emulation::machine->copies_late) emulation::perform(copy);
}

inline void close_copy_group() { emulation::self().groups.emplace_back(); }

template <int pending>
void wait_for_copies() {
  auto& groups = emulation::self().groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    if (emulation::machine->copies_late) {
      for (const auto& copy : groups.front()) emulation::perform(copy);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&to)[4], const char* row) {
  auto& warp = emulation::warp();
  const int lane = emulation::lane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a row of a matrix is not aligned");
  warp.rows[lane] = row;
  emulation::meet(warp.meeting, emulation::kLanes, [&warp] {
    emulation::count_bank_conflicts(warp.rows);
    for (int i = 0; i < emulation::kLanes; ++i) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::memcpy(&warp.matrices[i][matrix], warp.rows[matrix * 8 + i / 4] + i % 4 * 4, 4);
      }
    }
  });
  std::memcpy(to, warp.matrices[lane], sizeof(to));
}

inline void multiply_add(float (&to)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  auto& warp = emulation::warp();
  const int lane = emulation::lane();
  std::memcpy(warp.a[lane], a, sizeof(a));
  warp.b[lane][0] = b0;
  warp.b[lane][1] = b1;
  std::memcpy(warp.sums[lane], to, sizeof(to));
  emulation::meet(warp.meeting, emulation::kLanes, [&warp] { emulation::multiply_add(warp); });
  std::memcpy(to, warp.sums[lane], sizeof(to));
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t rounded_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fffU;
  return (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
}

inline uint32_t two_bfloat16(float first, float second) {
  return rounded_bfloat16(first) | rounded_bfloat16(second) << 16;
}

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

}  // namespace fastdense::cuda
