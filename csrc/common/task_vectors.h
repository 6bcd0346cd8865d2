// SPDX-License-Identifier: Apache-2.0
// What merge and merge_dots both take: a range of tiles of an arena, and task vectors over it in
// any codec. Their checks, and where in memory a range begins.
#pragma once

#include <algorithm>
#include <optional>

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

// Where rows begin in each of the tiles, see common/tile_rows.h; shape and place alone.
inline void check_rows(const char* op, const Tensor& rows, int64_t tiles, const Tensor& other) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) == tiles && rows.size(1) == 2, op,
                  ": rows must be [", tiles, ", 2], got ", shape(rows));
  check_dtype(op, "rows", rows, ScalarType::Int);
  check_beside(op, "rows", rows, other);
}

// What they hold, where it can be read: a wrong one would divide by zero or read past lambda.
inline void check_row_values(const char* op, const int32_t* rows, int64_t tiles) {
  for (int64_t t = 0; t < tiles; ++t) {
    const int32_t length = rows[2 * t], phase = rows[2 * t + 1];
    STD_TORCH_CHECK(1 <= length && length <= kTile && 0 <= phase && phase < length, op,
                    ": rows must hold lengths in [1, ", kTile, "] and phases below them, got ",
                    length, " and ", phase);
  }
}

// Element `i` of a tensor's memory.
inline const void* element_of(const Tensor& x, int64_t i) {
  return static_cast<const char*>(x.const_data_ptr()) + i * static_cast<int64_t>(x.element_size());
}

// Tile `tile` of the first row of task vectors, and of their scales.
inline const void* tile_of(const Tensor& deltas, int64_t tile) {
  return element_of(deltas, tile * kTile / per_stored(deltas));
}
inline const float* tile_of(const std::optional<Tensor>& scales, int64_t tile) {
  return scales ? scales->const_data_ptr<float>() + tile * (kTile / kGroup) : nullptr;
}

}  // namespace mdft
