// Which kernels compute the scores of a device.
#pragma once

#include <string>

namespace fastdense::cuda {

struct ProductChoice {
  bool wgmma;
  std::string refusal;  // why what was asked for cannot run; else empty
};

// The environment variable FASTDENSE_CUDA_PRODUCT asks for one kernel by name: "mma" or "wgmma"; null leaves the choice
// to the compute capability. built: whether there is code for 9.0a, the only one to have wgmma.
inline ProductChoice choose_product(const char* wanted, int major, int minor, bool built) {
  const bool can = built && major == 9 && minor == 0;
  if (wanted == nullptr) return {can, ""};
  const std::string name = wanted;
  if (name == "mma") return {false, ""};
  if (name != "wgmma") return {false, "FASTDENSE_CUDA_PRODUCT must be mma or wgmma, not " + name};
  if (can) return {true, ""};
  const std::string capability = std::to_string(major) + "." + std::to_string(minor);
  return {false, "FASTDENSE_CUDA_PRODUCT=wgmma cannot run: " +
                     (built ? "it needs compute capability 9.0, and this device has " + capability
                            : "fastdense was built without 90a in FASTDENSE_CUDA_ARCHITECTURES")};
}

}  // namespace fastdense::cuda
