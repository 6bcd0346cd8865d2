// SPDX-License-Identifier: Apache-2.0
// merge_dots: dots[k, l] = sum over the tiles of column l of <gradient, deltas[k]>, the gradient of
// merge with respect to coefficients, for the tiles [first, last) of an arena.
//
//   grads         [tensors]       gradient of each tensor that lies in [first, last), in arena
//                                 order; absent ones count as zero; one dtype, contiguous. Each
//                                 fills its tiles, the last perhaps in part, and ends within N
//   deltas        [K, N]          task vectors or their codes, as in merge/merge.h, and so scales
//   order         [last - first]  int32: tiles, counted from first, sorted by column
//   starts        [L + 1]         int32: column l owns order[starts[l] : starts[l + 1]]
//   tensor_tiles  [tensors + 1]   int64, on the CPU: first tile of each tensor, from first
//   columns       [last - first]  int32, or None: with lambda per output row the column of each
//   rows          [last - first, 2]  tile's first element, and its rows as in merge/merge.h. A row
//                                 that begins within a tile has its own column, columns[tile] + 1
//                                 and on; order and starts go by the first elements
//   dots          [K, L]          float32 (float64 for float64)
//
// A tile's dot product is one fixed tree in the accumulator's precision, in which a scale
// multiplies the sum over its group's codes, or over a part of them; a column's tiles are added in
// order in float64. With rows, one such tree is the part of a row in a tile, and a row's parts are
// added in order. No atomics: equal inputs give equal bits, whatever the number of threads.
#pragma once

#include <vector>

#include "common/task_vectors.h"

namespace mdft {

// The gradients that are there, as merge_dots reads them.
struct Gradients {
  std::vector<const void*> pointers;  // [tensors], null where absent
  std::vector<int64_t> sizes;         // [tensors]
  ScalarType type;
};

inline void check_index(const Tensor& deltas, const std::optional<Tensor>& scales,
                        const Tensor& order, const Tensor& starts, const Tensor& tensor_tiles,
                        const std::optional<Tensor>& columns, const std::optional<Tensor>& rows,
                        int64_t tensors, int64_t first, int64_t last) {
  STD_TORCH_CHECK(deltas.dim() == 2, "merge_dots: deltas must be [K, N], got ", shape(deltas));
  const int64_t N = deltas.size(1) * per_stored(deltas);
  check_scales("merge_dots", deltas, scales, N);
  check_range("merge_dots", first, last, N);
  STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == last - first, "merge_dots: order must be [",
                  last - first, "], got ", shape(order));
  STD_TORCH_CHECK(starts.dim() == 1 && starts.size(0) >= 1,
                  "merge_dots: starts must be [L + 1], got ", shape(starts));
  STD_TORCH_CHECK(tensor_tiles.dim() == 1 && tensor_tiles.size(0) == tensors + 1,
                  "merge_dots: tensor_tiles must be [", tensors + 1, "], got ",
                  shape(tensor_tiles));
  STD_TORCH_CHECK(is_floating(deltas.scalar_type()) || is_codes(deltas.scalar_type()),
                  "merge_dots: deltas must be float32, float64, float16, bfloat16, int8 or uint8, "
                  "got ",
                  name(deltas.scalar_type()));
  check_dtype("merge_dots", "order", order, ScalarType::Int);
  check_dtype("merge_dots", "starts", starts, ScalarType::Int);
  check_dtype("merge_dots", "tensor_tiles", tensor_tiles, ScalarType::Long);
  STD_TORCH_CHECK(!tensor_tiles.is_cuda(), "merge_dots: tensor_tiles must be on the CPU, got CUDA");
  STD_TORCH_CHECK(tensor_tiles.is_contiguous(),
                  "merge_dots: tensor_tiles must be contiguous, got strides");
  check_beside("merge_dots", "deltas", deltas, order);
  if (scales) check_beside("merge_dots", "scales", *scales, deltas);
  check_beside("merge_dots", "order", order, deltas);
  check_beside("merge_dots", "starts", starts, deltas);
  STD_TORCH_CHECK(columns.has_value() == rows.has_value(),
                  "merge_dots: columns and rows must go together, got one of them");
  if (!rows) return;
  STD_TORCH_CHECK(columns->dim() == 1 && columns->size(0) == last - first,
                  "merge_dots: columns must be [", last - first, "], got ", shape(*columns));
  check_dtype("merge_dots", "columns", *columns, ScalarType::Int);
  check_beside("merge_dots", "columns", *columns, deltas);
  check_rows("merge_dots", *rows, last - first, deltas);
}

// The i-th gradient, which fills the tiles from `tile` on up to `end`, counted from first.
inline void check_gradient(const Tensor& grad, int64_t i, int64_t tile, int64_t end,
                           const Tensor& deltas, int64_t first) {
  STD_TORCH_CHECK(tiles_of(grad.numel()) == end - tile, "merge_dots: gradient ", i, " must fill ",
                  end - tile, " tiles of ", kTile, " elements, got ", shape(grad));
  // The arena may end within its last tile: beyond lies the next row of deltas, or nothing.
  const int64_t most = deltas.size(1) * per_stored(deltas) - (first + tile) * kTile;
  STD_TORCH_CHECK(grad.numel() <= most, "merge_dots: gradient ", i, " must have at most ", most,
                  " elements, got ", shape(grad));
  check_accumulates("merge_dots", "a gradient", grad.scalar_type(),
                    accumulator(deltas.scalar_type()));
}

inline Gradients check_merge_dots_args(const std::vector<std::optional<Tensor>>& grads,
                                       const Tensor& deltas, const std::optional<Tensor>& scales,
                                       const Tensor& order, const Tensor& starts,
                                       const Tensor& tensor_tiles, int64_t first, int64_t last,
                                       const std::optional<Tensor>& columns,
                                       const std::optional<Tensor>& rows) {
  const auto n = static_cast<int64_t>(grads.size());
  check_index(deltas, scales, order, starts, tensor_tiles, columns, rows, n, first, last);
  const int64_t* tiles = tensor_tiles.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(tiles[0] == 0 && tiles[n] == last - first,
                  "merge_dots: tensor_tiles must run from 0 to ", last - first, ", got ", tiles[0],
                  " to ", tiles[n]);

  Gradients present{.pointers = std::vector<const void*>(n, nullptr),
                    .sizes = std::vector<int64_t>(n, 0),
                    .type = accumulator(deltas.scalar_type())};
  bool any = false;
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(tiles[i] <= tiles[i + 1], "merge_dots: tensor_tiles must not decrease, got ",
                    tiles[i], " before ", tiles[i + 1]);
    if (!grads[i]) continue;
    const Tensor& grad = *grads[i];
    check_gradient(grad, i, tiles[i], tiles[i + 1], deltas, first);
    STD_TORCH_CHECK(!any || grad.scalar_type() == present.type,
                    "merge_dots: all gradients must be ", name(present.type), ", got ",
                    name(grad.scalar_type()));
    check_beside("merge_dots", "a gradient", grad, deltas);
    present.pointers[i] = grad.const_data_ptr();
    present.sizes[i] = grad.numel();
    present.type = grad.scalar_type();
    any = true;
  }
  return present;
}

}  // namespace mdft
