#define FASTDENSE_KERNELS kernels_generic
#define FASTDENSE_NAME "generic"
#define FASTDENSE_LANES 4
#define FASTDENSE_TILE_ROWS 4
#define FASTDENSE_DEPTH 1
#define FASTDENSE_INNER_UNITS 512
#include "cpu/gemm/kernels.inc"
