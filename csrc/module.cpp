// fastdense._C: facts about this build and this CPU. It holds no torch, so it answers even where _ops cannot load.

#include <pybind11/pybind11.h>

#include "cpu/capabilities.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTDENSE_VERSION;
  info["torch"] = FASTDENSE_TORCH_VERSION;
  info["cuda"] = FASTDENSE_CUDA_VERSION;
  info["cuda_architectures"] = FASTDENSE_CUDA_ARCHITECTURES;
  info["compiler"] = FASTDENSE_COMPILER;
  return info;
}

py::dict cpu_capabilities() {
  py::dict capabilities;
  capabilities["avx2"] = fastdense::cpu::has_avx2();
  capabilities["avx512"] = fastdense::cpu::has_avx512();
  capabilities["avx512_bf16"] = fastdense::cpu::has_avx512_bf16();
  capabilities["amx_bf16"] = fastdense::cpu::has_amx_bf16();
  return capabilities;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this build of fastdense and about this CPU.";
  m.def("build_info", &build_info,
        "Versions this build was made with; \"cuda\" is empty where no CUDA kernel was compiled.");
  m.def("cpu_capabilities", &cpu_capabilities, "Instruction sets of this CPU that the kernels can use.");
}
