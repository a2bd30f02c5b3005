#define FASTDENSE_KERNELS kernels_avx2
#define FASTDENSE_NAME "avx2"
#define FASTDENSE_LANES 8
#define FASTDENSE_TILE_ROWS 6
#define FASTDENSE_DEPTH 1
#define FASTDENSE_INNER_UNITS 512
#include "cpu/gemm/kernels.inc"
