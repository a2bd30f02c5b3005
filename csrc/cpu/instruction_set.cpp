#include "cpu/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/capabilities.h"

namespace fastdense::cpu {
namespace {

struct Candidate {
  const char* name;
  RowKernel kernel;
  bool supported;
};

RowKernel choose() {
  const Candidate candidates[] = {
#ifdef FASTDENSE_X86
      {"avx512", row_kernel_avx512, has_avx512()},
      {"avx2", row_kernel_avx2, has_avx2()},
#endif
      {"generic", row_kernel_generic, true},
  };
  const char* wanted = std::getenv("FASTDENSE_CPU_INSTRUCTION_SET");
  for (const Candidate& candidate : candidates) {
    if (candidate.supported && (wanted == nullptr || std::string(wanted) == candidate.name)) return candidate.kernel;
  }
  throw std::runtime_error(
      "FASTDENSE_CPU_INSTRUCTION_SET must name an instruction set of this CPU (avx512, avx2 or "
      "generic), got " +
      std::string(wanted));
}

}  // namespace

RowKernel row_kernel() {
  static const RowKernel kernel = choose();
  return kernel;
}

}  // namespace fastdense::cpu
