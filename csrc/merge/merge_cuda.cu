// SPDX-License-Identifier: Apache-2.0
// merge and merge_dots on CUDA. merge_kernel.h and merge_dots_kernel.h say what bounds the kernels,
// merge_launch.h how they are launched.
#define MDFT_ISA cuda
#include "common/cuda_grid.h"
#include "merge/merge_launch.h"

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CUDA, m) {
  m.impl("merge", TORCH_BOX(&mdft::cuda::merge));
  m.impl("merge_out", TORCH_BOX(&mdft::cuda::merge_out));
  m.impl("merge_dots", TORCH_BOX(&mdft::cuda::merge_dots));
}
