// SPDX-License-Identifier: Apache-2.0
// merge_dots on CUDA. gpu_kernel.h says what bounds the kernels, gpu_launch.h how they are
// launched.
#define MDFT_TARGET cuda
#include "common/grid/cuda.h"
#include "merge_dots/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CUDA, m) {
  m.impl("merge_dots", TORCH_BOX(&mdft::cuda::merge_dots));
}
