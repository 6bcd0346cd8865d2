// SPDX-License-Identifier: Apache-2.0
// The launcher of merge: check, guard, allocate, sizes, empty?, dispatch, launch. Grid
// (common/grid/cuda.h, common/grid/emulated.h) says where the kernels run.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "merge/gpu_kernel.h"
#include "merge/merge.h"

namespace mdft::MDFT_TARGET {

template <typename Kernel>
void launch_packs(const Grid& grid, const MergeArgs& args, int64_t pack) {
  const int64_t elements = Kernel::kThreads * pack;  // of a block
  grid.template launch<Kernel>((args.n + elements - 1) / elements, args);
}

// Packs where every row begins at a whole pack, else one stored value at a time.
template <typename scalar_t, typename base_t>
void launch_merge_from(const Grid& grid, const MergeArgs& args) {
  constexpr int kPack = kFullPack<scalar_t>;
  constexpr int kLeast = Codec<scalar_t>::kPerStored;
  const bool wide = args.N % kPack == 0 && is_aligned(args.base) && is_aligned(args.deltas) &&
                    is_aligned(args.out);
  if (args.rows == nullptr) {
    wide ? launch_packs<MergeKernel<scalar_t, base_t, kPack, false>>(grid, args, kPack)
         : launch_packs<MergeKernel<scalar_t, base_t, kLeast, false>>(grid, args, kLeast);
  } else {
    wide ? launch_packs<MergeKernel<scalar_t, base_t, kPack, true>>(grid, args, kPack)
         : launch_packs<MergeKernel<scalar_t, base_t, kLeast, true>>(grid, args, kLeast);
  }
}

inline void launch_merge(const Grid& grid, const MergeArgs& args) {
  if (args.n == 0) return;  // a launch of no blocks is an error
  with_accumulator(args.base_dtype, [&](auto acc) {
    using acc_t = type_of<decltype(acc)>;
    with_stored<acc_t>(args.deltas_dtype, [&](auto type) {
      with_float<acc_t>(args.base_dtype, [&](auto base_type) {
        launch_merge_from<type_of<decltype(type)>, type_of<decltype(base_type)>>(grid, args);
      });
    });
  });
}

inline Tensor merge(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                    const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                    ScalarType out_dtype, const std::optional<Tensor>& rows) {
  check_merge_args(base, deltas, scales, coefficients, columns, rows, first, last, out_dtype);
  const Grid grid(base);
  const int64_t n = elements_of(first, last, base.size(0));
  const Tensor out = torch::stable::new_empty(base, {n}, out_dtype);
  launch_merge(grid, merge_args(base, deltas, scales, coefficients, columns, rows, first, out));
  return out;
}

inline void merge_out(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                      const Tensor& coefficients, const Tensor& columns, int64_t first,
                      int64_t last, const Tensor& out, const std::optional<Tensor>& rows) {
  check_merge_args(base, deltas, scales, coefficients, columns, rows, first, last,
                   out.scalar_type());
  check_merge_out(base, deltas, scales, coefficients, out, first, last);
  const Grid grid(base);
  launch_merge(grid, merge_args(base, deltas, scales, coefficients, columns, rows, first, out));
}

}  // namespace mdft::MDFT_TARGET
