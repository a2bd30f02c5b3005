#define ROW_KERNEL row_kernel_avx2
#include "cpu/row_kernel.inc"
