#pragma once

#include "cpu/row_kernel.h"

namespace fastdense::cpu {

// The row kernel for the best instruction set of this CPU; the environment variable FASTDENSE_CPU_INSTRUCTION_SET
// (generic, avx2 or avx512) asks for a lesser one. Throws std::runtime_error if this CPU lacks the one asked for.
RowKernel row_kernel();

}  // namespace fastdense::cpu
