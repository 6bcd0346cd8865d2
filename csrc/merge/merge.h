// SPDX-License-Identifier: Apache-2.0
// merge: out[n] = base[n] + sum_k coefficients[k, columns[tile of n]] * deltas[k, n]
// (equation 1 of docs/method.md), for the tiles [first, last) of an arena.
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
//   rows          [last - first, 2] int32, or None: with lambda per output row the length of a
//                 tile's rows (kTile where they are longer) and the phase, how much of the first
//                 lies in tiles before: element e of the tile reads column
//                 columns[tile] + (phase + e) / length, at most L - 1 (which padding may reach);
//                 None: the whole tile reads columns[tile]
//   out           elements of the tiles; any of these dtypes, rounded once from the sum; where the
//                 caller gives it, memory that holds none of the inputs
//
// Sums run in float32 (float64) in the order base, k = 0, 1, ... K - 1; lambda times a scale is
// rounded before it meets the group's codes. A tile is kTile elements; the last one may be partial.
#pragma once

#include "common/task_vectors.h"
#include "merge/arguments.h"

namespace mdft {

inline void check_merge_args(const Tensor& base, const Tensor& deltas,
                             const std::optional<Tensor>& scales, const Tensor& coefficients,
                             const Tensor& columns, const std::optional<Tensor>& rows,
                             int64_t first, int64_t last, ScalarType out) {
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
  if (rows) check_rows("merge", *rows, last - first, base);
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

// What a checked call reads and writes.
inline MergeArgs merge_args(const Tensor& base, const Tensor& deltas,
                            const std::optional<Tensor>& scales, const Tensor& coefficients,
                            const Tensor& columns, const std::optional<Tensor>& rows, int64_t first,
                            const Tensor& out) {
  return {.base = element_of(base, first * kTile),
          .deltas = tile_of(deltas, first),
          .scales = tile_of(scales, first),
          .coefficients = coefficients.const_data_ptr(),
          .columns = columns.const_data_ptr<int32_t>(),
          .out = out.mutable_data_ptr(),
          .base_dtype = dtype_of(base.scalar_type()),
          .deltas_dtype = dtype_of(deltas.scalar_type()),
          .out_dtype = dtype_of(out.scalar_type()),
          .K = deltas.size(0),
          .L = coefficients.size(1),
          .N = base.size(0),
          .n = out.size(0),
          .rows = rows ? rows->const_data_ptr<int32_t>() : nullptr};
}

}  // namespace mdft
