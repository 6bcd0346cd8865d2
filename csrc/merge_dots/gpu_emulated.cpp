// SPDX-License-Identifier: Apache-2.0
// The kernels of merge_dots, and their launchers, over an emulated grid: tests only.
#define MDFT_TARGET emulated
#include "common/grid/emulated.h"
#include "merge_dots/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast_emulated, CPU, m) {
  m.impl("merge_dots", TORCH_BOX(&mdft::emulated::merge_dots));
}
