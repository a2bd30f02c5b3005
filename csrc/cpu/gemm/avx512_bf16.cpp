#include <immintrin.h>

#define FASTDENSE_KERNELS kernels_avx512_bf16
#define FASTDENSE_NAME "avx512_bf16"
#define FASTDENSE_LANES 16
#define FASTDENSE_TILE_ROWS 14
#define FASTDENSE_DEPTH 2
#define FASTDENSE_INNER_UNITS 4096
#include "cpu/gemm/kernels.inc"
