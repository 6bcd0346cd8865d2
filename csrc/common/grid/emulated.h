// SPDX-License-Identifier: Apache-2.0
// Where kernels run in tests: the CPU, one block after another, last to first.
#pragma once

#include <cstring>

#include "common/checks.h"
#include "common/grid/body.h"

namespace mdft::emulated {

class Grid {
 public:
  explicit Grid(const Tensor&) {}

  template <typename Kernel>
  void launch(int64_t blocks, const typename Kernel::Args& args) const {
    STD_TORCH_CHECK(blocks > 0, "emulated: a launch must have blocks, got ", blocks);
    typename Kernel::Shared shared;
    for (int64_t block = blocks - 1; block >= 0; --block) {
      std::memset(&shared, 0xff, sizeof(shared));  // NaN: what is read must have been written
      Kernel::run(args, Block<Kernel::kThreads>{block}, shared);
    }
  }
};

}  // namespace mdft::emulated
