// What score_tile.cuh and exponentials.cuh ask of the machine, in the instructions of compute capability 8.0, which all
// later ones have. tests/loss/emulation has the same functions for a CPU.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#define FASTDENSE_DEVICE __device__ __forceinline__

namespace fastdense::cuda {

FASTDENSE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FASTDENSE_DEVICE int64_t block_index() { return blockIdx.x; }

FASTDENSE_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];  // the alignment of hopper.cuh's swizzle
  return memory;
}

FASTDENSE_DEVICE void barrier() { __syncthreads(); }
FASTDENSE_DEVICE bool any_in_block(bool mine) { return __syncthreads_or(mine) != 0; }
FASTDENSE_DEVICE float from_lane_xor(float mine, int mask) { return __shfl_xor_sync(0xffffffffU, mine, mask); }

// 16 bytes into shared memory, some time before a wait for their group; zeros where not valid.
FASTDENSE_DEVICE void copy_16_bytes(char* to, const void* from, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
FASTDENSE_DEVICE void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest `pending` groups of this thread have arrived.
template <int pending>
FASTDENSE_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8, and gets two elements of row i / 4 of
// each.
FASTDENSE_DEVICE void load_matrices(uint32_t (&to)[4], const char* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// to += a b: [16, 8] += [16, 16] [16, 8], bfloat16 factors, float32 sums.
FASTDENSE_DEVICE void multiply_add(float (&to)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// To the nearest; the first in the lower half.
FASTDENSE_DEVICE uint32_t two_bfloat16(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&both);
}
FASTDENSE_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

}  // namespace fastdense::cuda
