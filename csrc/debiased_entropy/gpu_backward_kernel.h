// SPDX-License-Identifier: Apache-2.0
// The body of debiased_entropy_backward on a GPU; see common/grid/body.h for what it is written in.
// 2 M numbers moved: at a step's size the launch is all of its time.
#pragma once

#include "debiased_entropy/gpu_rows.h"

namespace mdft::MDFT_TARGET {

struct EntropyBackwardArgs {
  const void* grad;            // [M]
  const int64_t* row_offsets;  // [R + 1]
  const int64_t* task_rows;    // [K + 1]
  const void* grad_loss;       // [K]
  void* out;                   // [M]
  int64_t M, R, K;
  int64_t blocks;  // of a task
};

template <typename scalar_t>
struct EntropyBackwardKernel {
  using acc_t = typename Accumulate<scalar_t>::type;
  using Args = EntropyBackwardArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  using Shared = Verdict<kThreads / kWarp>;

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared& alone) {
    const int64_t task = block.index / a.blocks;
    const Part rows = part(a.task_rows, task, a.R);
    if (rows.begin == rows.end) return;
    block.phase([&](int warp) { alone.of_warp[warp] = owns_alone(a, block, warp, task); });
    const int64_t begin = part(a.row_offsets, rows.begin, a.M).begin;
    const int64_t end = part(a.row_offsets, rows.end - 1, a.M).end;
    const bool sound = alone.sound();
    const acc_t by = sound ? static_cast<const acc_t*>(a.grad_loss)[task] : kNaN<acc_t>;
    const auto* grad = static_cast<const scalar_t*>(a.grad);
    auto* out = static_cast<scalar_t*>(a.out);
    block.each_thread([&](int thread) {
      const int64_t first = begin + (block.index % a.blocks) * kThreads + thread;
      for (int64_t m = first; m < end; m += a.blocks * kThreads) {
        // 0 stays 0 where the factor is infinite: a removed row has no gradient.
        const acc_t g = widen(grad[m]);
        narrow(g == 0 && sound ? acc_t{0} : g * by, out + m);
      }
    });
  }
};

}  // namespace mdft::MDFT_TARGET
