// What this CPU can execute of what the kernels are compiled for (CMakeLists.txt holds the compiler flags).
#pragma once

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

}  // namespace fastdense::cpu
