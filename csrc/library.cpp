// SPDX-License-Identifier: Apache-2.0
// Defines the operators of schemas.h as torch.ops.mdft_fast; the files cpu.cpp and gpu_cuda.cu of
// each operator's folder register what computes them.
#include <torch/csrc/stable/library.h>

#include "schemas.h"

STABLE_TORCH_LIBRARY(mdft_fast, m) {
  for (const char* schema : mdft::kSchemas) m.def(schema);
}
