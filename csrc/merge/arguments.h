// SPDX-License-Identifier: Apache-2.0
// What merge's loops and kernels read and write, on every device. Free of torch: see
// common/number.h.
#pragma once

#include "common/number.h"

namespace mdft {

struct MergeArgs {
  const void* base;          // of the range's first tile, as are deltas, scales and out
  const void* deltas;        // [K, N]
  const float* scales;       // [K, N / kGroup], null where deltas are floats
  const void* coefficients;  // [K, L], float32 (float64 for float64)
  const int32_t* columns;    // [tiles]: tile -> column
  void* out;                 // [n]
  DType base_dtype, deltas_dtype, out_dtype;
  int64_t K, L, N, n;
  const int32_t* rows;  // [tiles, 2]: length and phase of a tile's rows; null: one column a tile
};

}  // namespace mdft
