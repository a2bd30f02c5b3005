// The operators of fastdense, on the LibTorch stable ABI. Fake kernels and backwards are registered in Python
// (fastdense/loss/operator.py, fastdense/training/dropout.py), which also check every argument before it arrives here.

#include <torch/csrc/stable/library.h>

#include "cpu/contrastive.h"
#include "cpu/dropout.h"
#ifdef FASTDENSE_WITH_CUDA
#include "cuda/contrastive_rows.h"
#include "cuda/score_exponentials.h"
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(fastdense, m) {
  m.def(
      "contrastive_native("
      "Tensor query, Tensor passage, Tensor target, Tensor scale, Tensor? passage_id, Tensor? weight, "
      "float label_smoothing, bool symmetric, bool mean, bool query_grad, bool passage_grad, int hardest, "
      "int chunk_bytes, bool by_products) -> "
      "(Tensor loss, Tensor query_grad, Tensor passage_grad, Tensor scale_grad, Tensor[] by_products)");
  // One chunk of rows for a device whose matrix products come from torch (fastdense/loss/implementations/native.py):
  // scores [rows, M], float32 dot products, become the gradient of the loss to them.
  m.def(
      "contrastive_rows_("
      "Tensor(a!) scores, Tensor target, Tensor scale, Tensor? passage_id, Tensor weight, "
      "float label_smoothing, Tensor(b!) loss, Tensor(c!) scale_grad, Tensor(d!) log_normalizer, "
      "Tensor(e!) target_score, Tensor(f!) correct) -> ()");
  // The same in bfloat16 with the product of the scores inside, in three operators (csrc/cuda/chunk.h says what the
  // tensors are): exponentials of the scores and their sums; maxima, where the exponentials' offset needs them; and
  // label smoothing of what is stored. partials are [4, blocks of columns, rows], of score_maxima_ [2, ...].
  m.def(
      "score_exponentials_("
      "Tensor query, Tensor passage, Tensor target, Tensor? label, Tensor scale, Tensor offset, Tensor reference, "
      "Tensor(a!) stored, Tensor(b!) target_score, Tensor(c!) partials) -> ()");
  m.def(
      "score_maxima_("
      "Tensor query, Tensor passage, Tensor target, Tensor? label, Tensor scale, Tensor wanted, "
      "Tensor(a!) partials) -> ()");
  m.def("smooth_exponentials_(Tensor(a!) stored, Tensor target, Tensor? label, Tensor gain, Tensor share) -> ()");
  // A contiguous float32 or bfloat16 tensor, each value times 0 with probability p, else times 1 / (1 - p); the seed
  // says which.
  m.def("dropout_native(Tensor input, float p, int seed, bool bfloat16=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastdense, CPU, m) {
  m.impl("contrastive_native", TORCH_BOX(&fastdense::cpu::contrastive));
  m.impl("dropout_native", TORCH_BOX(&fastdense::cpu::dropout));
}

#ifdef FASTDENSE_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastdense, CUDA, m) {
  m.impl("contrastive_rows_", TORCH_BOX(&fastdense::cuda::contrastive_rows));
  m.impl("score_exponentials_", TORCH_BOX(&fastdense::cuda::score_exponentials));
  m.impl("score_maxima_", TORCH_BOX(&fastdense::cuda::score_maxima));
  m.impl("smooth_exponentials_", TORCH_BOX(&fastdense::cuda::smooth_exponentials));
}
#endif
