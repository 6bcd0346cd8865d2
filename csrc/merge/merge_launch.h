// SPDX-License-Identifier: Apache-2.0
// The launchers of merge and merge_dots: check, guard, allocate, sizes, empty?, dispatch, launch.
// Grid (common/cuda_grid.h, common/emulated_grid.h) says where the kernels run.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "merge/merge.h"
#include "merge/merge_dots_kernel.h"
#include "merge/merge_kernel.h"

namespace mdft::MDFT_ISA {

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kWidestLoad == 0; }

// Element `i` of a tensor's memory.
inline const void* at(const Tensor& x, int64_t i) {
  return static_cast<const char*>(x.const_data_ptr()) + i * static_cast<int64_t>(x.element_size());
}

// Tile `tile` of the first row of task vectors, and of their scales.
inline const void* tile_of(const Tensor& deltas, int64_t tile) {
  return at(deltas, tile * kTile / per_stored(deltas));
}
inline const float* tile_of(const std::optional<Tensor>& scales, int64_t tile) {
  return scales ? scales->const_data_ptr<float>() + tile * (kTile / kGroup) : nullptr;
}

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
  wide ? launch_packs<MergeKernel<scalar_t, base_t, kPack>>(grid, args, kPack)
       : launch_packs<MergeKernel<scalar_t, base_t, kLeast>>(grid, args, kLeast);
}

template <typename scalar_t>
void launch_merge_as(const Grid& grid, const MergeArgs& args, DType base_dtype) {
  switch (base_dtype) {
    case DType::kFloat32:
      return launch_merge_from<scalar_t, float>(grid, args);
    case DType::kBFloat16:
      return launch_merge_from<scalar_t, BFloat16Bits>(grid, args);
    case DType::kFloat16:
      return launch_merge_from<scalar_t, Float16Bits>(grid, args);
    case DType::kFloat64:
    case DType::kInt8:
    case DType::kInt4:
      return;  // check_merge_args: float64 only where deltas are float64 too, and never codes
  }
}

inline void launch_merge(const Grid& grid, const Tensor& base, const Tensor& deltas,
                         const std::optional<Tensor>& scales, const Tensor& coefficients,
                         const Tensor& columns, int64_t first, const Tensor& out) {
  const MergeArgs args{at(base, first * kTile),
                       tile_of(deltas, first),
                       tile_of(scales, first),
                       coefficients.const_data_ptr(),
                       columns.const_data_ptr<int32_t>(),
                       out.mutable_data_ptr(),
                       dtype_of(out.scalar_type()),
                       deltas.size(0),
                       coefficients.size(1),
                       base.size(0),
                       out.size(0)};
  if (args.n == 0) return;  // a launch of no blocks is an error
  const DType base_dtype = dtype_of(base.scalar_type());
  switch (dtype_of(deltas.scalar_type())) {
    case DType::kFloat32:
      return launch_merge_as<float>(grid, args, base_dtype);
    case DType::kBFloat16:
      return launch_merge_as<BFloat16Bits>(grid, args, base_dtype);
    case DType::kFloat16:
      return launch_merge_as<Float16Bits>(grid, args, base_dtype);
    case DType::kFloat64:
      return launch_merge_from<double, double>(grid, args);
    case DType::kInt8:
      return launch_merge_as<int8_t>(grid, args, base_dtype);
    case DType::kInt4:
      return launch_merge_as<Int4Pair>(grid, args, base_dtype);
  }
}

inline Tensor merge(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                    const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                    ScalarType out_dtype) {
  check_merge_args(base, deltas, scales, coefficients, columns, first, last, out_dtype);
  const Grid grid(base);
  const int64_t n = elements_of(first, last, base.size(0));
  const Tensor out = torch::stable::new_empty(base, {n}, out_dtype);
  launch_merge(grid, base, deltas, scales, coefficients, columns, first, out);
  return out;
}

inline void merge_out(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                      const Tensor& coefficients, const Tensor& columns, int64_t first,
                      int64_t last, const Tensor& out) {
  check_merge_args(base, deltas, scales, coefficients, columns, first, last, out.scalar_type());
  check_merge_out(base, deltas, scales, coefficients, out, first, last);
  const Grid grid(base);
  launch_merge(grid, base, deltas, scales, coefficients, columns, first, out);
}

// The gradients of up to Table::kTensors tensors from `begin` on; returns one past the last.
inline int64_t fill_table(const Gradients& present, const int64_t* tiles, int64_t begin,
                          DotsArgs* args) {
  const auto tensors = static_cast<int64_t>(present.pointers.size());
  const int64_t end = std::min(begin + Table::kTensors, tensors);
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

template <typename scalar_t>
void launch_dots_as(const Grid& grid, const Gradients& present, const int64_t* tiles,
                    DotsArgs* args) {
  using Kernel = DotsKernel<scalar_t>;
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

inline void launch_dots(const Grid& grid, const Gradients& present, const int64_t* tiles,
                        DType deltas_dtype, DotsArgs* args) {
  switch (deltas_dtype) {
    case DType::kFloat32:
      return launch_dots_as<float>(grid, present, tiles, args);
    case DType::kBFloat16:
      return launch_dots_as<BFloat16Bits>(grid, present, tiles, args);
    case DType::kFloat16:
      return launch_dots_as<Float16Bits>(grid, present, tiles, args);
    case DType::kFloat64:
      return launch_dots_as<double>(grid, present, tiles, args);
    case DType::kInt8:
      return launch_dots_as<int8_t>(grid, present, tiles, args);
    case DType::kInt4:
      return launch_dots_as<Int4Pair>(grid, present, tiles, args);
  }
}

inline Tensor merge_dots(const std::vector<std::optional<Tensor>>& grads, const Tensor& deltas,
                         const std::optional<Tensor>& scales, const Tensor& order,
                         const Tensor& starts, const Tensor& tensor_tiles, int64_t first,
                         int64_t last) {
  const Gradients present =
      check_merge_dots_args(grads, deltas, scales, order, starts, tensor_tiles, first, last);
  const Grid grid(deltas);
  const ScalarType acc = accumulator(deltas.scalar_type());
  const int64_t K = deltas.size(0);
  const int64_t L = starts.size(0) - 1;
  const Tensor dots = torch::stable::new_empty(deltas, {K, L}, acc);
  const Tensor partials = torch::stable::new_empty(deltas, {K, last - first}, acc);
  if (K * L == 0) return dots;
  DotsArgs args{};
  args.deltas = tile_of(deltas, first);
  args.scales = tile_of(scales, first);
  args.partials = partials.mutable_data_ptr();
  args.grads_dtype = dtype_of(present.type);
  args.K = K;
  args.N = deltas.size(1) * per_stored(deltas);
  args.tiles = last - first;
  launch_dots(grid, present, tensor_tiles.const_data_ptr<int64_t>(), dtype_of(deltas.scalar_type()),
              &args);
  const ColumnsArgs columns{partials.const_data_ptr(),
                            order.const_data_ptr<int32_t>(),
                            starts.const_data_ptr<int32_t>(),
                            dots.mutable_data_ptr(),
                            L,
                            last - first};
  // Also where there are no tiles: it writes the zeros.
  acc == ScalarType::Double ? grid.template launch<ColumnsKernel<double>>(K * L, columns)
                            : grid.template launch<ColumnsKernel<float>>(K * L, columns);
  return dots;
}

}  // namespace mdft::MDFT_ISA
