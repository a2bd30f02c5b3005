// The functions of csrc/cuda/hopper.cuh for a CPU, beside those of machine.h: the tensor memory accelerator, mbarriers
// and wgmma, as the PTX ISA describes them. Boxes arrive, and products read their factors, as early or as late as they
// may; what the PTX ISA leaves undefined, or would never end, ends the program.
#pragma once

#include <map>

#include "machine.h"

namespace emulation {

// 16-bit elements; sizes and the row's bytes are what cuTensorMapEncodeTiled is told.
struct Matrix {
  const char* elements;
  int64_t row_bytes;
  int rows;
  int width;
};

constexpr int kBoxRows = 128, kBoxRowBytes = 128;

struct PhaseBarrier {
  int arrivals = 0;  // of each phase
  int missing = 0;   // of this phase
  long missing_bytes = 0;
  int phase = 0;
  std::vector<std::function<void()>> late_copies;

  void end_phase_if_complete() {
    if (missing != 0 || missing_bytes != 0) return;
    missing = arrivals;
    ++phase;
  }
};

inline std::map<const void*, PhaseBarrier> phase_barriers;
inline bool shown_to_copies = false;

inline PhaseBarrier& at(const void* address) {
  const auto found = phase_barriers.find(address);
  if (found == phase_barriers.end()) fail("a barrier is used before it was initialized");
  return found->second;
}

// Bits 4 to 6 of an address in shared memory are permuted by its bits 7 to 9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7U) << 4; }

inline void perform_box(uint32_t to, const Matrix& from, int row, int column, char* shared) {
  for (int r = 0; r < kBoxRows; ++r) {
    for (int byte = 0; byte < kBoxRowBytes; byte += 2) {
      const int at_row = row + r, at_column = column + byte / 2;
      char* element = shared + swizzled(to + r * kBoxRowBytes + byte);
      const bool inside = at_row < from.rows && at_column < from.width;
      const char* source = from.elements + at_row * from.row_bytes + at_column * 2;
      if (inside) std::memcpy(element, source, 2);
      if (!inside) std::memset(element, 0, 2);
    }
  }
}

// What the lanes of a warp multiply.
struct Product {
  uint64_t a[kLanes], b[kLanes];
  float (*sums[kLanes])[4];
};

// A warp's products: groups, the last of which is open.
struct Products {
  std::vector<std::vector<std::function<void()>>> groups{1};
  bool begun = false;
  Product next;
};

inline std::map<int, Products> products_of_warp;

inline Products& products() { return products_of_warp[machine->current / kLanes]; }

// An element of a factor, K-major: eight rows of 128 bytes beside one another, the next eight at the stride.
inline float element_of(uint64_t descriptor, int row, int k, const char* shared) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7U) != 0) fail("a descriptor is not of a swizzle of 128 bytes");
  const auto start = static_cast<uint32_t>(descriptor & 0x3fffU) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fffU) << 4;
  const uint32_t address = swizzled(start + row / 8 * stride + row % 8 * 128 + k * 2);
  uint16_t bits;
  if (address + 2 > machine->shared.size() - kSharedAlignment) fail("a factor lies outside of shared memory");
  std::memcpy(&bits, shared + address, 2);
  return from_bfloat16(bits);
}

// The 16 rows that a warp of a warpgroup has of a [64, 128] product. Sums are laid out as the PTX ISA's "D fragment".
inline void multiply_add_rows(const Product& of, int warp_in_group, const char* shared) {
  for (int i = 1; i < kLanes; ++i) {
    if (of.a[i] != of.a[0] || of.b[i] != of.b[0]) fail("the lanes of a warp have different descriptors");
  }
  float a[16][16], b[128][16];
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 16; ++row) a[row][k] = element_of(of.a[0], warp_in_group * 16 + row, k, shared);
    for (int row = 0; row < 128; ++row) b[row][k] = element_of(of.b[0], row, k, shared);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 64; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& sum = of.sums[lane][i / 4][i % 4];
      double exact = sum;
      for (int k = 0; k < 16; ++k) exact += static_cast<double>(a[row][k]) * b[column][k];
      sum = static_cast<float>(exact);
    }
  }
}

}  // namespace emulation

namespace fastdense::cuda {

using Matrix = emulation::Matrix;
using PhaseBarrier = uint64_t;

inline uint32_t shared_address(const void* in_shared_memory) {
  return static_cast<uint32_t>(static_cast<const char*>(in_shared_memory) - shared_memory());
}

inline void initialize(PhaseBarrier* barrier, int arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) emulation::fail("a barrier is not aligned");
  emulation::PhaseBarrier fresh;
  fresh.arrivals = fresh.missing = arrivals;
  emulation::phase_barriers[barrier] = fresh;
  emulation::shown_to_copies = false;
}
inline void show_barriers_to_copies() { emulation::shown_to_copies = true; }

inline void arrive(PhaseBarrier* barrier) {
  auto& state = emulation::at(barrier);
  if (--state.missing < 0) emulation::fail("more arrivals at a barrier than it waits for");
  state.end_phase_if_complete();
}

inline void arrive_and_expect(PhaseBarrier* barrier, int bytes) {
  emulation::at(barrier).missing_bytes += bytes;
  arrive(barrier);
}

inline void wait_for_phase(PhaseBarrier* barrier, int parity) {
  auto& state = emulation::at(barrier);
  while (state.phase % 2 == parity) {
    if (state.late_copies.empty()) {
      emulation::give_way();
    } else {  // one at a time: a phase that expects too little ends before the last
      const auto copy = state.late_copies.front();
      state.late_copies.erase(state.late_copies.begin());
      copy();
    }
  }
  ++emulation::machine->progress;
}

inline void copy_box(char* to, const Matrix& from, int row, int column, PhaseBarrier* barrier) {
  const uint32_t address = shared_address(to);
  if (!emulation::shown_to_copies) emulation::fail("a copy is begun before it can see its barrier");
  if (address % 1024 != 0) emulation::fail("a swizzled box is not aligned to its pattern");
  if (reinterpret_cast<uintptr_t>(from.elements) % 16 != 0 || from.row_bytes % 16 != 0) {
    emulation::fail("a matrix is not aligned");
  }
  const auto copy = [=, &from, shared = shared_memory()] {
    auto& state = emulation::at(barrier);
    emulation::perform_box(address, from, row, column, shared);
    state.missing_bytes -= emulation::kBoxRows * emulation::kBoxRowBytes;
    state.end_phase_if_complete();
  };
  if (emulation::machine->copies_late) {
    emulation::at(barrier).late_copies.emplace_back(copy);
  } else {
    copy();
  }
}

inline void join_warp() {
  emulation::meet(emulation::warp().meeting, emulation::kLanes, [] {});
}

inline void begin_products() {
  join_warp();
  emulation::products().begun = true;
}

inline void multiply_add(float (&to)[16][4], uint64_t a, uint64_t b) {
  auto& mine = emulation::products();
  const int lane = emulation::lane();
  if (!mine.begun) emulation::fail("products are not begun");
  mine.next.a[lane] = a;
  mine.next.b[lane] = b;
  mine.next.sums[lane] = to;
  emulation::meet(emulation::warp().meeting, emulation::kLanes, [&mine] {
    const int warp_in_group = emulation::machine->current / emulation::kLanes % 4;
    const auto product = [of = mine.next, warp_in_group, shared = shared_memory()] {
      emulation::multiply_add_rows(of, warp_in_group, shared);
    };
    if (emulation::machine->copies_late) {
      mine.groups.back().emplace_back(product);
    } else {
      product();
    }
  });
}

inline void close_product_group() {
  emulation::meet(emulation::warp().meeting, emulation::kLanes, [] {
    emulation::products().groups.emplace_back();
    emulation::products().begun = false;
  });
}

template <int pending>
void wait_for_products() {
  emulation::meet(emulation::warp().meeting, emulation::kLanes, [] {
    auto& groups = emulation::products().groups;
    while (static_cast<int>(groups.size()) - 1 > pending) {
      for (const auto& product : groups.front()) product();
      groups.erase(groups.begin());
    }
  });
}

inline void settle(float (&)[16][4]) {}

}  // namespace fastdense::cuda
