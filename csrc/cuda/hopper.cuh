// What wgmma_tile.cuh asks of the machine beside ampere.cuh, in instructions that only code for compute capability 9.0a
// has. tests/loss/emulation has the same functions for a CPU. Names in quotes are those of the PTX ISA, which defines
// each.
#pragma once

#include <cuda.h>

#include "cuda/ampere.cuh"

namespace fastdense::cuda {

// In global memory, rows of 16-bit elements, of which copy_box takes boxes of 128 rows of 128 bytes.
using Matrix = CUtensorMap;
// "mbarrier", in shared memory: a phase ends when its arrivals and the bytes it was told to expect are there.
using PhaseBarrier = uint64_t;

FASTDENSE_DEVICE uint32_t shared_address(const void* in_shared_memory) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(in_shared_memory));
}

FASTDENSE_DEVICE void initialize(PhaseBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Copies go through another proxy, which must see what initialize wrote.
FASTDENSE_DEVICE void show_barriers_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

FASTDENSE_DEVICE void arrive(PhaseBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
FASTDENSE_DEVICE void arrive_and_expect(PhaseBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Until the barrier's phase of this parity has ended; the first one's is 0.
FASTDENSE_DEVICE void wait_for_phase(PhaseBarrier* barrier, int parity) {
  uint32_t ended = 0;
  while (ended == 0) {
    asm volatile(
        "{\n\t"
        ".reg .pred ended;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, ended;\n\t"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// "wgmma" wants all lanes of a warp together, which have come out of a wait or a branch one by one.
FASTDENSE_DEVICE void join_warp() { __syncwarp(); }

// Begin to copy the box from (row, column) on, swizzled; zeros beyond the end. Its bytes arrive at the barrier.
FASTDENSE_DEVICE void copy_box(char* to, const Matrix& from, int row, int column, PhaseBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(&from), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// "wgmma": the registers of `to` belong to the products from begin_products until wait_for_products.
FASTDENSE_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FASTDENSE_DEVICE void close_product_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All but the newest `pending` groups of this warp are done.
template <int pending>
FASTDENSE_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// to += a b: [64, 128] += [64, 16] [16, 128], bfloat16 factors, float32 sums, by four warps. Both factors are named by
// a "matrix descriptor"; b's rows are the columns of the product.
FASTDENSE_DEVICE void multiply_add(float (&to)[16][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, 0, 0;"
      : "+f"(to[0][0]), "+f"(to[0][1]), "+f"(to[0][2]), "+f"(to[0][3]), "+f"(to[1][0]), "+f"(to[1][1]), "+f"(to[1][2]),
        "+f"(to[1][3]), "+f"(to[2][0]), "+f"(to[2][1]), "+f"(to[2][2]), "+f"(to[2][3]), "+f"(to[3][0]), "+f"(to[3][1]),
        "+f"(to[3][2]), "+f"(to[3][3]), "+f"(to[4][0]), "+f"(to[4][1]), "+f"(to[4][2]), "+f"(to[4][3]), "+f"(to[5][0]),
        "+f"(to[5][1]), "+f"(to[5][2]), "+f"(to[5][3]), "+f"(to[6][0]), "+f"(to[6][1]), "+f"(to[6][2]), "+f"(to[6][3]),
        "+f"(to[7][0]), "+f"(to[7][1]), "+f"(to[7][2]), "+f"(to[7][3]), "+f"(to[8][0]), "+f"(to[8][1]), "+f"(to[8][2]),
        "+f"(to[8][3]), "+f"(to[9][0]), "+f"(to[9][1]), "+f"(to[9][2]), "+f"(to[9][3]), "+f"(to[10][0]),
        "+f"(to[10][1]), "+f"(to[10][2]), "+f"(to[10][3]), "+f"(to[11][0]), "+f"(to[11][1]), "+f"(to[11][2]),
        "+f"(to[11][3]), "+f"(to[12][0]), "+f"(to[12][1]), "+f"(to[12][2]), "+f"(to[12][3]), "+f"(to[13][0]),
        "+f"(to[13][1]), "+f"(to[13][2]), "+f"(to[13][3]), "+f"(to[14][0]), "+f"(to[14][1]), "+f"(to[14][2]),
        "+f"(to[14][3]), "+f"(to[15][0]), "+f"(to[15][1]), "+f"(to[15][2]), "+f"(to[15][3])
      : "l"(a), "l"(b)
      : "memory");
}

// No use of the sums moves up across this.
FASTDENSE_DEVICE void settle(float (&sums)[16][4]) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int k = 0; k < 4; ++k) asm volatile("" : "+f"(sums[j][k])::"memory");
  }
}

}  // namespace fastdense::cuda
