// SPDX-License-Identifier: Apache-2.0
// The kernels of debiased_entropy, and their launchers, over an emulated grid: tests only.
#define MDFT_ISA emulated
#include "common/emulated_grid.h"
#include "debiased_entropy/debiased_entropy_launch.h"

// The schemas of csrc/library.cpp; a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(mdft_fast_emulated, m) {
  m.def(
      "debiased_entropy(Tensor logits, Tensor teacher, Tensor? teacher_entropy, "
      "Tensor row_offsets, Tensor task_rows, float alpha, float mu, bool use_entropy, "
      "bool filter, int reweight, bool entropy_of_meta) "
      "-> (Tensor loss, Tensor entropy, Tensor weight, Tensor kept, Tensor grad)");
  m.def(
      "debiased_entropy_backward(Tensor grad, Tensor row_offsets, Tensor task_rows, "
      "Tensor grad_loss) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mdft_fast_emulated, CPU, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::emulated::debiased_entropy));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::emulated::debiased_entropy_backward));
}
