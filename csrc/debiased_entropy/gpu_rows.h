// SPDX-License-Identifier: Apache-2.0
// How the kernels of debiased_entropy find and read rows. Offsets come from device memory and have
// not been checked: they are cut to what is there.
#pragma once

#include "common/grid/body.h"

namespace mdft::MDFT_TARGET {

// A part [begin, end) of [0, size), cut to lie within.
struct Part {
  int64_t begin, end;
  bool whole;  // nothing was cut
};
MDFT_DEVICE Part part(const int64_t* offsets, int64_t i, int64_t size) {
  const int64_t begin = offsets[i], end = offsets[i + 1];
  const int64_t low = begin < 0 ? 0 : begin > size ? size : begin;
  const int64_t high = end < low ? low : end > size ? size : end;
  return {low, high, low == begin && high == end};
}

// exp in the accumulator's precision; log once a row, in double.
MDFT_DEVICE float exponential(float x) { return expf(x); }
MDFT_DEVICE double exponential(double x) { return exp(x); }

// A row in any dtype, as the lanes of a warp read it. Past its end stands `fill`.
template <typename acc_t>
struct LaneRow {
  const void* data;
  DType dtype;
  Part part;

  MDFT_DEVICE int64_t size() const { return part.end - part.begin; }
  MDFT_DEVICE acc_t read(int64_t i, acc_t fill) const {
    if (i >= size()) return fill;
    const int64_t m = part.begin + i;
    return branch<acc_t>(dtype, [&](auto type) -> acc_t {
      return widen(static_cast<const type_of<decltype(type)>*>(data)[m]);
    });
  }
};

}  // namespace mdft::MDFT_TARGET
