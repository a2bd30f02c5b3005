#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastdense, m) {
  (void)m;
}
