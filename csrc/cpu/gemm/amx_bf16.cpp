#include <immintrin.h>

#define FASTDENSE_KERNELS kernels_amx_bf16
#define FASTDENSE_NAME "amx_bf16"
#define FASTDENSE_LANES 16
#define FASTDENSE_TILE_ROWS 32
#define FASTDENSE_DEPTH 2
#define FASTDENSE_INNER_UNITS 1024
#define FASTDENSE_AMX
#include "cpu/gemm/kernels.inc"
