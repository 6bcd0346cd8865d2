// SPDX-License-Identifier: Apache-2.0
// merge on CUDA. gpu_kernel.h says what bounds the kernel, gpu_launch.h how it is launched.
#define MDFT_TARGET cuda
#include "common/grid/cuda.h"
#include "merge/gpu_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CUDA, m) {
  m.impl("merge", TORCH_BOX(&mdft::cuda::merge));
  m.impl("merge_out", TORCH_BOX(&mdft::cuda::merge_out));
}
