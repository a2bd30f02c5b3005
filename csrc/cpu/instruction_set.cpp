#include "cpu/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/capabilities.h"

namespace fastdense::cpu {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool supported;
};

struct Choice {
  const Kernels* float32 = nullptr;
  const Kernels* bfloat16 = nullptr;
};

Choice choose() {
  const Candidate candidates[] = {
#ifdef FASTDENSE_X86
      {&kernels_amx_bf16, has_amx_bf16()},
      {&kernels_avx512_bf16, has_avx512_bf16()},
      {&kernels_avx512, has_avx512()},
      {&kernels_avx2, has_avx2()},
#endif
      {&kernels_generic, true},
  };
  const char* wanted = std::getenv("FASTDENSE_CPU_INSTRUCTION_SET");
  bool reached = wanted == nullptr;  // candidates better than the one asked for are passed over
  Choice choice;
  for (const auto& [kernels, supported] : candidates) {
    reached = reached || std::string(wanted) == kernels->name;
    if (!reached) continue;
    if (!supported && wanted != nullptr && choice.bfloat16 == nullptr) break;
    if (!supported) continue;
    if (choice.bfloat16 == nullptr) choice.bfloat16 = kernels;
    if (choice.float32 == nullptr && kernels->depth == 1) choice.float32 = kernels;
  }
  if (choice.float32 != nullptr) return choice;
  throw std::runtime_error(
      "FASTDENSE_CPU_INSTRUCTION_SET must name an instruction set of this CPU (amx_bf16, avx512_bf16, avx512, avx2 or "
      "generic), "
      "got " +
      std::string(wanted));
}

}  // namespace

const Kernels& choose_kernels(bool bfloat16_products) {
  static const Choice choice = choose();
  return bfloat16_products ? *choice.bfloat16 : *choice.float32;
}

}  // namespace fastdense::cpu
