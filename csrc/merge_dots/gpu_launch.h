// SPDX-License-Identifier: Apache-2.0
// The launchers of merge_dots; see merge/gpu_launch.h for their order.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "merge_dots/gpu_columns_kernel.h"
#include "merge_dots/gpu_kernel.h"
#include "merge_dots/gpu_row_dots.h"
#include "merge_dots/merge_dots.h"

namespace mdft::MDFT_TARGET {

// The gradients of up to GradientTable::kTensors tensors from `begin` on; returns one past the
// last.
inline int64_t fill_table(const Gradients& present, const int64_t* tiles, int64_t begin,
                          DotsKernelArgs* args) {
  const auto tensors = static_cast<int64_t>(present.pointers.size());
  const int64_t end = std::min(begin + GradientTable::kTensors, tensors);
  for (int64_t i = begin; i < end; ++i) {
    args->table.grads[i - begin] = present.pointers[i];
    args->table.tiles[i - begin] = static_cast<int32_t>(tiles[i]);
    const int64_t before_last = std::max<int64_t>(tiles[i + 1] - tiles[i] - 1, 0) * kTile;
    args->table.tails[i - begin] = static_cast<uint16_t>(present.sizes[i] - before_last);
  }
  args->tensors = static_cast<int32_t>(end - begin);
  args->table.tiles[end - begin] = static_cast<int32_t>(tiles[end]);
  return end;
}

template <typename Kernel>
void launch_dots_as(const Grid& grid, const Gradients& present, const int64_t* tiles,
                    DotsKernelArgs* args) {
  constexpr int64_t kWarps = Kernel::kThreads / kWarp;
  args->wide = args->N % Kernel::kPack == 0 && is_aligned(args->deltas);
  const auto tensors = static_cast<int64_t>(present.pointers.size());
  for (int64_t begin = 0; begin < tensors;) {
    const int64_t end = fill_table(present, tiles, begin, args);
    const int64_t in_table = tiles[end] - tiles[begin];
    if (in_table > 0) grid.template launch<Kernel>((in_table + kWarps - 1) / kWarps, *args);
    begin = end;
  }
}

inline Tensor merge_dots(const std::vector<std::optional<Tensor>>& grads, const Tensor& deltas,
                         const std::optional<Tensor>& scales, const Tensor& order,
                         const Tensor& starts, const Tensor& tensor_tiles, int64_t first,
                         int64_t last, const std::optional<Tensor>& columns,
                         const std::optional<Tensor>& rows) {
  const Gradients present = check_merge_dots_args(grads, deltas, scales, order, starts,
                                                  tensor_tiles, first, last, columns, rows);
  const Grid grid(deltas);
  const ScalarType acc = accumulator(deltas.scalar_type());
  const int64_t K = deltas.size(0);
  const int64_t L = starts.size(0) - 1;
  // By row, tiles write where a row begins alone.
  const Tensor dots = rows ? torch::stable::new_zeros(deltas, {K, L}, acc)
                           : torch::stable::new_empty(deltas, {K, L}, acc);
  const Tensor partials = torch::stable::new_empty(deltas, {K, last - first}, acc);
  if (K * L == 0) return dots;
  DotsKernelArgs args{.table = {},
                      .deltas = tile_of(deltas, first),
                      .scales = tile_of(scales, first),
                      .partials = partials.mutable_data_ptr(),
                      .grads_dtype = dtype_of(present.type),
                      .wide = false,  // the launcher of each dtype
                      .tensors = 0,   // and of each table
                      .K = K,
                      .N = deltas.size(1) * per_stored(deltas),
                      .tiles = last - first,
                      .columns = rows ? columns->const_data_ptr<int32_t>() : nullptr,
                      .rows = rows ? rows->const_data_ptr<int32_t>() : nullptr,
                      .dots = dots.mutable_data_ptr(),
                      .L = L};
  const int64_t* tiles = tensor_tiles.const_data_ptr<int64_t>();
  const ColumnsArgs sums{.partials = partials.const_data_ptr(),
                         .order = order.const_data_ptr<int32_t>(),
                         .starts = starts.const_data_ptr<int32_t>(),
                         .dots = dots.mutable_data_ptr(),
                         .L = L,
                         .tiles = last - first,
                         .K = K};
  with_accumulator(dtype_of(acc), [&](auto type) {
    using acc_t = type_of<decltype(type)>;
    with_stored<acc_t>(dtype_of(deltas.scalar_type()), [&](auto stored) {
      using scalar_t = type_of<decltype(stored)>;
      rows ? launch_dots_as<DotsKernel<scalar_t, true>>(grid, present, tiles, &args)
           : launch_dots_as<DotsKernel<scalar_t, false>>(grid, present, tiles, &args);
    });
    if (rows) {
      constexpr int64_t kThreads = RowColumnsKernel<acc_t>::kThreads;
      grid.template launch<RowColumnsKernel<acc_t>>((K * L + kThreads - 1) / kThreads, sums);
    } else {  // also where there are no tiles: it writes the zeros
      grid.template launch<ColumnsKernel<acc_t>>(K * L, sums);
    }
  });
  return dots;
}

}  // namespace mdft::MDFT_TARGET
