// The operators of fastdense, on the LibTorch stable ABI. Fake kernels and backwards are registered in Python
// (fastdense/loss/operator.py), which also checks every argument before it arrives here.

#include <torch/csrc/stable/library.h>

#include "cpu/contrastive.h"
#ifdef FASTDENSE_WITH_CUDA
#include "cuda/contrastive_rows.h"
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(fastdense, m) {
  m.def(
      "contrastive_native("
      "Tensor query, Tensor passage, Tensor target, Tensor scale, Tensor? passage_id, Tensor? weight, "
      "float label_smoothing, bool symmetric, bool mean, bool query_grad, bool passage_grad, int hardest, "
      "int chunk_bytes) -> "
      "(Tensor loss, Tensor query_grad, Tensor passage_grad, Tensor scale_grad, "
      "Tensor log_normalizer, Tensor target_score, Tensor correct, Tensor hardest_index, Tensor hardest_score)");
  // One chunk of rows for a device whose matrix products come from torch (fastdense/loss/implementations/native.py):
  // scores [rows, M] float32 dot products; gradient [rows, M] float32 (scores itself may be given) or bfloat16.
  m.def(
      "contrastive_rows_("
      "Tensor scores, Tensor(a!) gradient, Tensor target, Tensor scale, Tensor? passage_id, Tensor weight, "
      "float label_smoothing, Tensor(b!) loss, Tensor(c!) scale_grad, Tensor(d!) log_normalizer, "
      "Tensor(e!) target_score, Tensor(f!) correct) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdense, CPU, m) { m.impl("contrastive_native", TORCH_BOX(&fastdense::cpu::contrastive)); }

#ifdef FASTDENSE_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastdense, CUDA, m) {
  m.impl("contrastive_rows_", TORCH_BOX(&fastdense::cuda::contrastive_rows));
}
#endif
