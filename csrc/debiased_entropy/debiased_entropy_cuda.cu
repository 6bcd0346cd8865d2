// SPDX-License-Identifier: Apache-2.0
// debiased_entropy and its backward on CUDA. debiased_entropy_kernel.h says what bounds them,
// debiased_entropy_launch.h how they are launched.
#define MDFT_ISA cuda
#include "common/cuda_grid.h"
#include "debiased_entropy/debiased_entropy_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CUDA, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::cuda::debiased_entropy));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::cuda::debiased_entropy_backward));
}
