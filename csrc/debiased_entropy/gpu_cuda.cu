// SPDX-License-Identifier: Apache-2.0
// debiased_entropy and its backward on CUDA. gpu_kernel.h says what bounds them, gpu_launch.h how
// they are launched.
#define MDFT_TARGET cuda
#include "common/grid/cuda.h"
#include "debiased_entropy/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CUDA, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::cuda::debiased_entropy));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::cuda::debiased_entropy_backward));
}
