#define ROW_KERNEL row_kernel_avx512
#include "cpu/row_kernel.inc"
