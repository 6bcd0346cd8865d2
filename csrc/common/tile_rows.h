// SPDX-License-Identifier: Apache-2.0
// Where the rows of a tensor begin in one of its tiles, with lambda per output row. Included once
// for each target, inside the namespace mdft::MDFT_TARGET, as convert.h.
#pragma once

#ifndef MDFT_TARGET
#error "define MDFT_TARGET (the namespace of what this is built for) before including tile_rows.h"
#endif

#include "common/number.h"

namespace mdft::MDFT_TARGET {

// Element e of the tile lies in its row (phase + e) / length, counted from the row of its first
// element. A row that is longer than a tile counts as kTile long: it ends at most once in here.
struct TileRows {
  int32_t length;  // 1 .. kTile
  int32_t phase;   // 0 .. length - 1

  // Of tile t; one row where there is no table.
  static MDFT_HOST_DEVICE TileRows of(const int32_t* table, int64_t t) {
    if (table == nullptr) return {static_cast<int32_t>(kTile), 0};
    return {table[2 * t], table[2 * t + 1]};
  }
  MDFT_HOST_DEVICE bool valid() const {
    return 1 <= length && length <= kTile && 0 <= phase && phase < length;
  }
  MDFT_HOST_DEVICE int row_of(int element) const { return (phase + element) / length; }
  // The first element of a row; less than 0 where it began in a tile before.
  MDFT_HOST_DEVICE int begin(int row) const { return row * length - phase; }
};

}  // namespace mdft::MDFT_TARGET
