// SPDX-License-Identifier: Apache-2.0
// merge: out[n] = base[n] + sum_k coefficients[k, columns[tile of n]] * deltas[k, n]
// (METHOD's equation 1), for the tiles [first, last) of an arena.
//
//   base          [N]             pre-trained weights; float32, float16, bfloat16 or float64
//   deltas        [K, N]          task vectors, fine-tuned minus pre-trained; any of these dtypes,
//                                 but float64 exactly where base is; or codes, beside a base that
//                                 is not float64: int8, or uint8 [K, N / 2] for int4, element 2i in
//                                 the low half of a byte, 2i + 1 in the high one
//   scales        [K, N / kGroup] float32, for codes alone: an element is its code times its
//                                 group's scale; N is a multiple of kGroup then
//   coefficients  [K, L]          lambda; float32 (float64 for float64), read on the device
//   columns       [last - first]  int32: tile -> column of lambda, each in [0, L)
//   out           elements of the tiles; any of these dtypes, rounded once from the sum; where the
//                 caller gives it, memory that holds none of the inputs
//
// Sums run in float32 (float64) in the order base, k = 0, 1, ... K - 1; lambda times a scale is
// rounded before it meets the group's codes. A tile is kTile elements; the last one may be partial.
//
// merge_dots: dots[k, l] = sum over the tiles of column l of <gradient, deltas[k]>, the gradient of
// merge with respect to coefficients.
//
//   grads         [tensors]       gradient of each tensor that lies in [first, last), in arena
//                                 order; absent ones count as zero; one dtype, contiguous. Each
//                                 fills its tiles, the last perhaps in part, and ends within N
//   deltas        [K, N]          as above, and so scales
//   order         [last - first]  int32: tiles, counted from first, sorted by column
//   starts        [L + 1]         int32: column l owns order[starts[l] : starts[l + 1]]
//   tensor_tiles  [tensors + 1]   int64, on the CPU: first tile of each tensor, from first
//   dots          [K, L]          float32 (float64 for float64)
//
// A tile's dot product is one fixed tree in the accumulator's precision, in which a scale
// multiplies the sum over its group's codes, or over a part of them; a column's tiles are added in
// order in float64. No atomics: equal inputs give equal bits, whatever the number of threads.
#pragma once

#include <optional>
#include <vector>

#include "common/checks.h"

namespace mdft {

inline int64_t tiles_of(int64_t elements) { return (elements + kTile - 1) / kTile; }

// Elements of the tiles [first, last) of an arena of N.
inline int64_t elements_of(int64_t first, int64_t last, int64_t N) {
  return std::min(last * kTile, N) - std::min(first * kTile, N);
}

inline void check_range(const char* op, int64_t first, int64_t last, int64_t N) {
  STD_TORCH_CHECK(0 <= first && first <= last && last <= tiles_of(N), op,
                  ": tiles must be a range of [0, ", tiles_of(N), "], got [", first, ", ", last,
                  ")");
}

// int8, and int4 as uint8.
inline bool is_codes(ScalarType type) {
  return type == ScalarType::Char || type == ScalarType::Byte;
}

// Elements of the tensor that one of its stored values holds.
inline int64_t per_stored(const Tensor& deltas) {
  return deltas.scalar_type() == ScalarType::Byte ? 2 : 1;
}

// Scales exactly where there are codes, and whole groups of these.
inline void check_scales(const char* op, const Tensor& deltas, const std::optional<Tensor>& scales,
                         int64_t N) {
  const std::string type = name(deltas.scalar_type());
  if (!is_codes(deltas.scalar_type())) {
    STD_TORCH_CHECK(!scales, op, ": scales must be None for ", type, " deltas, got ",
                    shape(*scales));
    return;
  }
  STD_TORCH_CHECK(N % kGroup == 0, op, ": ", type, " deltas must have a multiple of ", kGroup,
                  " elements, got ", N);
  const int64_t K = deltas.size(0);
  STD_TORCH_CHECK(
      scales && scales->dim() == 2 && scales->size(0) == K && scales->size(1) == N / kGroup, op,
      ": scales must be [", K, ", ", N / kGroup, "] for ", type, " deltas, got ",
      scales ? shape(*scales) : "None");
  check_dtype(op, "scales", *scales, ScalarType::Float);
}

inline void check_deltas(const char* op, ScalarType type, ScalarType acc) {
  if (acc == ScalarType::Float && is_codes(type)) return;
  STD_TORCH_CHECK(is_floating(type) && accumulator(type) == acc, op, ": deltas must be ",
                  acc == ScalarType::Double ? "float64 like the rest"
                                            : "float32, float16, bfloat16, int8 or uint8",
                  ", got ", name(type));
}

inline void check_merge_args(const Tensor& base, const Tensor& deltas,
                             const std::optional<Tensor>& scales, const Tensor& coefficients,
                             const Tensor& columns, int64_t first, int64_t last, ScalarType out) {
  STD_TORCH_CHECK(base.dim() == 1, "merge: base must be [N], got ", shape(base));
  const int64_t N = base.size(0);
  const int64_t stored = N / per_stored(deltas);
  STD_TORCH_CHECK(deltas.dim() == 2 && deltas.size(1) == stored, "merge: deltas must be [K, ",
                  stored, "], got ", shape(deltas));
  check_scales("merge", deltas, scales, N);
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) == deltas.size(0),
                  "merge: coefficients must be [", deltas.size(0), ", L], got ",
                  shape(coefficients));
  check_range("merge", first, last, N);
  STD_TORCH_CHECK(columns.dim() == 1 && columns.size(0) == last - first, "merge: columns must be [",
                  last - first, "], got ", shape(columns));
  check_floating("merge", "base", base);
  const ScalarType acc = accumulator(base.scalar_type());
  check_deltas("merge", deltas.scalar_type(), acc);
  check_dtype("merge", "coefficients", coefficients, acc);
  check_dtype("merge", "columns", columns, ScalarType::Int);
  check_accumulates("merge", "out", out, acc);
  check_beside("merge", "base", base, deltas);
  check_beside("merge", "deltas", deltas, base);
  if (scales) check_beside("merge", "scales", *scales, base);
  check_beside("merge", "coefficients", coefficients, base);
  check_beside("merge", "columns", columns, base);
}

// Memory that both tensors hold, each contiguous and on one device.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& x) {
    return reinterpret_cast<uintptr_t>(x.const_data_ptr());
  };
  const auto end = [&](const Tensor& x) {
    return begin(x) + static_cast<uintptr_t>(x.numel()) * x.element_size();
  };
  return a.numel() > 0 && b.numel() > 0 && begin(a) < end(b) && begin(b) < end(a);
}

inline void check_apart(const char* op, const char* what, const Tensor& x, const char* other_name,
                        const Tensor& other) {
  STD_TORCH_CHECK(!overlap(x, other), op, ": ", what, " must not overlap ", other_name,
                  ", got memory of it");
}

inline void check_merge_out(const Tensor& base, const Tensor& deltas,
                            const std::optional<Tensor>& scales, const Tensor& coefficients,
                            const Tensor& out, int64_t first, int64_t last) {
  const int64_t n = elements_of(first, last, base.size(0));
  STD_TORCH_CHECK(out.dim() == 1 && out.size(0) == n, "merge: out must be [", n, "], got ",
                  shape(out));
  check_beside("merge", "out", out, base);
  check_apart("merge", "out", out, "base", base);
  check_apart("merge", "out", out, "deltas", deltas);
  if (scales) check_apart("merge", "out", out, "scales", *scales);
  check_apart("merge", "out", out, "coefficients", coefficients);
}

// The gradients that are there, as merge_dots reads them.
struct Gradients {
  std::vector<const void*> pointers;  // [tensors], null where absent
  std::vector<int64_t> sizes;         // [tensors]
  ScalarType type;
};

inline Gradients check_merge_dots_args(const std::vector<std::optional<Tensor>>& grads,
                                       const Tensor& deltas, const std::optional<Tensor>& scales,
                                       const Tensor& order, const Tensor& starts,
                                       const Tensor& tensor_tiles, int64_t first, int64_t last) {
  const auto n = static_cast<int64_t>(grads.size());
  STD_TORCH_CHECK(deltas.dim() == 2, "merge_dots: deltas must be [K, N], got ", shape(deltas));
  const int64_t N = deltas.size(1) * per_stored(deltas);
  check_scales("merge_dots", deltas, scales, N);
  check_range("merge_dots", first, last, N);
  STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == last - first, "merge_dots: order must be [",
                  last - first, "], got ", shape(order));
  STD_TORCH_CHECK(starts.dim() == 1 && starts.size(0) >= 1,
                  "merge_dots: starts must be [L + 1], got ", shape(starts));
  STD_TORCH_CHECK(tensor_tiles.dim() == 1 && tensor_tiles.size(0) == n + 1,
                  "merge_dots: tensor_tiles must be [", n + 1, "], got ", shape(tensor_tiles));
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
  const ScalarType acc = accumulator(deltas.scalar_type());
  const int64_t* tiles = tensor_tiles.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(tiles[0] == 0 && tiles[n] == last - first,
                  "merge_dots: tensor_tiles must run from 0 to ", last - first, ", got ", tiles[0],
                  " to ", tiles[n]);

  Gradients present{std::vector<const void*>(n, nullptr), std::vector<int64_t>(n, 0), acc};
  bool found = false;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t room = tiles[i + 1] - tiles[i];
    STD_TORCH_CHECK(room >= 0, "merge_dots: tensor_tiles must not decrease, got ", tiles[i],
                    " before ", tiles[i + 1]);
    if (!grads[i]) continue;
    const Tensor& g = *grads[i];
    STD_TORCH_CHECK(tiles_of(g.numel()) == room, "merge_dots: gradient ", i, " must fill ", room,
                    " tiles of ", kTile, " elements, got ", shape(g));
    // The arena may end within its last tile: beyond lies the next row of deltas, or nothing.
    const int64_t most = N - (first + tiles[i]) * kTile;
    STD_TORCH_CHECK(g.numel() <= most, "merge_dots: gradient ", i, " must have at most ", most,
                    " elements, got ", shape(g));
    check_accumulates("merge_dots", "a gradient", g.scalar_type(), acc);
    STD_TORCH_CHECK(!found || g.scalar_type() == present.type, "merge_dots: all gradients must be ",
                    name(present.type), ", got ", name(g.scalar_type()));
    check_beside("merge_dots", "a gradient", g, deltas);
    present.pointers[i] = g.const_data_ptr();
    present.sizes[i] = g.numel();
    present.type = g.scalar_type();
    found = true;
  }
  return present;
}

}  // namespace mdft
