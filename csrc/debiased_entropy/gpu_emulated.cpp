// SPDX-License-Identifier: Apache-2.0
// The kernels of debiased_entropy, and their launchers, over an emulated grid: tests only.
#define MDFT_TARGET emulated
#include "common/grid/emulated.h"
#include "debiased_entropy/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast_emulated, CPU, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::emulated::debiased_entropy));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::emulated::debiased_entropy_backward));
}
