#define ROW_KERNEL row_kernel_generic
#include "cpu/row_kernel.inc"
