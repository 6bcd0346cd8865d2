// SPDX-License-Identifier: Apache-2.0
// Where kernels run: the GPU of a tensor, on the caller's stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "common/checks.h"
#include "common/grid/body.h"

namespace mdft::cuda {

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    kernel(const __grid_constant__ typename Kernel::Args args) {
  __shared__ typename Kernel::Shared shared;
  Kernel::run(args, Block<Kernel::kThreads>{static_cast<int64_t>(blockIdx.x)}, shared);
}

// Makes the tensor's device the current one for as long as it lives. Nothing here waits for the
// GPU or asks the driver for memory, so a launch can be captured in a graph.
class Grid {
 public:
  explicit Grid(const Tensor& on) : guard_(on.get_device()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Kernel>
  void launch(int64_t blocks, const typename Kernel::Args& args) const {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(),
                    "mdft_fast: a launch must take fewer than 2^31 blocks, got ", blocks);
    kernel<Kernel><<<static_cast<unsigned>(blocks), Kernel::kThreads, 0, stream_>>>(args);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace mdft::cuda
