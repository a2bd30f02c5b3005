// What this CPU can execute of what the kernels are compiled for (CMakeLists.txt holds the compiler flags).
#pragma once

#if defined(FASTDENSE_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdense::cpu {

inline bool has_avx2() {
#ifdef FASTDENSE_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

inline bool has_avx512() {
#ifdef FASTDENSE_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

inline bool has_avx512_bf16() {
#ifdef FASTDENSE_X86
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Linux gives a process the tiles' registers when it asks for them.
inline bool has_amx_bf16() {
#if defined(FASTDENSE_X86) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned eax, ebx, ecx, edx = 0;
  const bool known = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0;
  const bool has_tiles = known && (edx >> 22 & 1) && (edx >> 24 & 1);  // AMX-BF16, AMX-TILE
  return has_avx512_bf16() && has_tiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace fastdense::cpu
