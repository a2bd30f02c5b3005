#pragma once

#include "cpu/gemm/kernels.h"

namespace fastdense::cpu {

// The kernels for the best instruction set of this CPU; bfloat16 products (which round exponentials to bfloat16) only
// if asked for. The environment variable FASTDENSE_CPU_INSTRUCTION_SET (generic, avx2, avx512, avx512_bf16 or amx_bf16)
// asks for a lesser one. Throws std::runtime_error if this CPU lacks the one asked for.
const Kernels& choose_kernels(bool bfloat16_products);

}  // namespace fastdense::cpu
