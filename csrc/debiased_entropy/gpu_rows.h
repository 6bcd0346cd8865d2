// SPDX-License-Identifier: Apache-2.0
// How the kernels of debiased_entropy find and read rows. Offsets come from device memory and have
// not been checked: they are cut to what is there, and a task that shares elements with another one
// is found out.
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

// Whether a task's offsets delimit rows and elements that are there and no other task's, as far as
// one warp looks: what comes before its own must not be larger, what comes behind not smaller, and
// its own must not decrease. All warps of a block together see all.
template <typename args_t, typename block_t>
MDFT_DEVICE bool owns_alone(const args_t& a, const block_t& block, int warp, int64_t task) {
  const Part rows = part(a.task_rows, task, a.R);
  Lanes<int> astray;
  each_lane([&](int lane) {
    astray[lane] = !rows.whole || a.row_offsets[rows.begin] < 0 || a.row_offsets[rows.end] > a.M;
    const auto look = [&](const int64_t* offsets, int64_t n, int64_t first, int64_t last) {
      for (int64_t i = warp * kWarp + lane; i <= n; i += block.kWarps * kWarp) {
        if (i <= first) astray[lane] += offsets[i] > offsets[first];
        if (i >= first && i < last) astray[lane] += offsets[i] > offsets[i + 1];
        if (i >= last) astray[lane] += offsets[i] < offsets[last];
      }
    };
    look(a.task_rows, a.K, task, task + 1);
    look(a.row_offsets, a.R, rows.begin, rows.end);
  });
  return warp_sum(astray) == 0;
}

// What the warps of a block found, told to all of them.
template <int kWarps>
struct Verdict {
  bool of_warp[kWarps];

  MDFT_DEVICE bool sound() const {
    bool all = true;
    for (int warp = 0; warp < kWarps; ++warp) all = all && of_warp[warp];
    return all;
  }
};

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
