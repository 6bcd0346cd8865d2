// SPDX-License-Identifier: Apache-2.0
// The kernel of merge, and its launcher, over an emulated grid: tests only.
#define MDFT_TARGET emulated
#include "common/grid/emulated.h"
#include "merge/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast_emulated, CPU, m) {
  m.impl("merge", TORCH_BOX(&mdft::emulated::merge));
  m.impl("merge_out", TORCH_BOX(&mdft::emulated::merge_out));
}
