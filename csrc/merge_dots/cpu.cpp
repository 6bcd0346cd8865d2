// SPDX-License-Identifier: Apache-2.0
// merge_dots on the CPU. Memory bound: reads each gradient and K rows of deltas once. Rows of codes
// bring 4 bytes of scale a group: 3 % of int8, 6 % of int4.
#define MDFT_TARGET portable
#include "merge_dots/cpu_loops.h"
#undef MDFT_TARGET

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/isa/features.h"
#include "merge_dots/merge_dots.h"

namespace mdft {

DotsLoop merge_dots_loop_avx2();  // cpu_avx2.cpp

namespace {

constexpr int64_t kGrain = 8;  // tiles; smallest share of work worth a thread

DotsLoop loop() {
  static const DotsLoop chosen = has_avx2() ? merge_dots_loop_avx2() : portable::merge_dots_range;
  return chosen;
}

// Indices come from outside: a wrong one would read past the end.
void check_order(const int32_t* order, int64_t tiles, const int32_t* starts, int64_t L) {
  for (int64_t i = 0; i < tiles; ++i) {
    STD_TORCH_CHECK(0 <= order[i] && order[i] < tiles, "merge_dots: order must lie in [0, ", tiles,
                    "), got ", order[i]);
  }
  for (int64_t l = 0; l < L; ++l) {
    STD_TORCH_CHECK(0 <= starts[l] && starts[l] <= starts[l + 1] && starts[l + 1] <= tiles,
                    "merge_dots: starts must rise within [0, ", tiles, "], got ", starts[l],
                    " before ", starts[l + 1]);
  }
}

// Rows that begin within a tile are written to its column and those behind it.
void check_rows_inside(const int32_t* columns, const int32_t* rows, const Gradients& present,
                       const int64_t* tensor_tiles, int64_t tiles, int64_t L) {
  check_row_values("merge_dots", rows, tiles);
  for (size_t i = 0; i < present.pointers.size(); ++i) {
    for (int64_t t = tensor_tiles[i]; t < tensor_tiles[i + 1] && present.pointers[i]; ++t) {
      const int64_t n = std::min(kTile, present.sizes[i] - (t - tensor_tiles[i]) * kTile);
      const int64_t last = columns[t] + (rows[2 * t + 1] + n - 1) / rows[2 * t];
      STD_TORCH_CHECK(0 <= columns[t] && last < L, "merge_dots: rows must lie in columns [0, ", L,
                      "), got [", columns[t], ", ", last, "]");
    }
  }
}

// Adds the dot products of each column's tiles, in order, in float64. By row, they come after what
// dots holds, and a column of no tile keeps that.
template <typename acc_t>
void add_columns(const acc_t* partials, const int32_t* order, const int32_t* starts, int64_t K,
                 int64_t L, int64_t tiles, bool by_row, acc_t* dots) {
  for (int64_t l = 0; l < L; ++l) {
    if (by_row && starts[l] == starts[l + 1]) continue;
    for (int64_t k = 0; k < K; ++k) {
      double sum = by_row ? dots[k * L + l] : 0;
      for (int32_t i = starts[l]; i < starts[l + 1]; ++i) sum += partials[k * tiles + order[i]];
      dots[k * L + l] = static_cast<acc_t>(sum);
    }
  }
}

Tensor merge_dots_cpu(const std::vector<std::optional<Tensor>>& grads, const Tensor& deltas,
                      const std::optional<Tensor>& scales, const Tensor& order,
                      const Tensor& starts, const Tensor& tensor_tiles, int64_t first, int64_t last,
                      const std::optional<Tensor>& columns, const std::optional<Tensor>& rows) {
  const Gradients present = check_merge_dots_args(grads, deltas, scales, order, starts,
                                                  tensor_tiles, first, last, columns, rows);
  const int64_t K = deltas.size(0);
  const int64_t L = starts.size(0) - 1;
  const int64_t tiles = last - first;
  const int32_t* order_ptr = order.const_data_ptr<int32_t>();
  const int32_t* starts_ptr = starts.const_data_ptr<int32_t>();
  check_order(order_ptr, tiles, starts_ptr, L);
  const ScalarType acc = accumulator(deltas.scalar_type());
  if (rows) {
    check_rows_inside(columns->const_data_ptr<int32_t>(), rows->const_data_ptr<int32_t>(), present,
                      tensor_tiles.const_data_ptr<int64_t>(), tiles, L);
  }
  // By row, tiles write where a row begins alone.
  Tensor dots = rows ? torch::stable::new_zeros(deltas, {K, L}, acc)
                     : torch::stable::new_empty(deltas, {K, L}, acc);
  Tensor partials = torch::stable::new_empty(deltas, {K, tiles}, acc);
  const DotsLoopArgs args{.grads = present.pointers.data(),
                          .sizes = present.sizes.data(),
                          .tensor_tiles = tensor_tiles.const_data_ptr<int64_t>(),
                          .deltas = tile_of(deltas, first),
                          .scales = tile_of(scales, first),
                          .partials = partials.mutable_data_ptr(),
                          .grads_dtype = dtype_of(present.type),
                          .deltas_dtype = dtype_of(deltas.scalar_type()),
                          .tensors = static_cast<int64_t>(grads.size()),
                          .tiles = tiles,
                          .K = K,
                          .N = deltas.size(1) * per_stored(deltas),
                          .columns = rows ? columns->const_data_ptr<int32_t>() : nullptr,
                          .rows = rows ? rows->const_data_ptr<int32_t>() : nullptr,
                          .dots = dots.mutable_data_ptr(),
                          .L = L};
  torch::stable::parallel_for(0, tiles, kGrain,
                              [&](int64_t begin, int64_t end) { loop()(args, begin, end); });
  portable::with_accumulator(dtype_of(acc), [&](auto type) {
    using acc_t = portable::type_of<decltype(type)>;
    add_columns(partials.const_data_ptr<acc_t>(), order_ptr, starts_ptr, K, L, tiles,
                rows.has_value(), dots.mutable_data_ptr<acc_t>());
  });
  return dots;
}

}  // namespace
}  // namespace mdft

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CPU, m) {
  m.impl("merge_dots", TORCH_BOX(&mdft::merge_dots_cpu));
}
