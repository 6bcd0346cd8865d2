// SPDX-License-Identifier: Apache-2.0
// The kernels of merge and merge_dots, and their launchers, over an emulated grid: tests only.
#define MDFT_ISA emulated
#include "common/emulated_grid.h"
#include "merge/merge_launch.h"

// The schemas of csrc/library.cpp; a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(mdft_fast_emulated, m) {
  m.def(
      "merge(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, Tensor columns, "
      "int first, int last, ScalarType out_dtype) -> Tensor");
  m.def(
      "merge_out(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, "
      "Tensor columns, int first, int last, Tensor(a!) out) -> ()");
  m.def(
      "merge_dots(Tensor?[] grads, Tensor deltas, Tensor? scales, Tensor order, "
      "Tensor starts, Tensor tensor_tiles, int first, int last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mdft_fast_emulated, CPU, m) {
  m.impl("merge", TORCH_BOX(&mdft::emulated::merge));
  m.impl("merge_out", TORCH_BOX(&mdft::emulated::merge_out));
  m.impl("merge_dots", TORCH_BOX(&mdft::emulated::merge_dots));
}
