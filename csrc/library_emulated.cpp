// SPDX-License-Identifier: Apache-2.0
// The same operators as torch.ops.mdft_fast_emulated, for tests; gpu_emulated.cpp registers them.
#include <torch/csrc/stable/library.h>

#include "schemas.h"

STABLE_TORCH_LIBRARY(mdft_fast_emulated, m) {
  for (const char* schema : mdft::kSchemas) m.def(schema);
}
