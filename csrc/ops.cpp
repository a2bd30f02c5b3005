// The operators of fastdense, on the LibTorch stable ABI. Fake kernels and backwards are registered in Python
// (fastdense/loss/operator.py), which also checks every argument before it arrives here.

#include <torch/csrc/stable/library.h>

#include "cpu/contrastive.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastdense, m) {
  m.def(
      "contrastive_native("
      "Tensor query, Tensor passage, Tensor target, Tensor scale, Tensor? passage_id, Tensor? weight, "
      "float label_smoothing, bool mean, bool query_grad, bool passage_grad, int chunk_bytes) -> "
      "(Tensor loss, Tensor query_grad, Tensor passage_grad, Tensor scale_grad, "
      "Tensor log_normalizer, Tensor target_score, Tensor correct)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdense, CPU, m) { m.impl("contrastive_native", TORCH_BOX(&fastdense::cpu::contrastive)); }
