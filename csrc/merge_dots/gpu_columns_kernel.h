// SPDX-License-Identifier: Apache-2.0
// The bodies of merge_dots' second step on a GPU: the sums of each column's tiles; see
// gpu_kernel.h.
#pragma once

#include "common/grid/body.h"

namespace mdft::MDFT_TARGET {

struct ColumnsArgs {
  const void* partials;   // [K, tiles]
  const int32_t* order;   // [tiles]
  const int32_t* starts;  // [L + 1]
  void* dots;             // [K, L]
  int64_t L, tiles, K;
};

// The partial of the i-th tile in order; zero from `end` on.
template <typename acc_t>
MDFT_DEVICE acc_t tile_partial(const ColumnsArgs& a, const acc_t* partials, int64_t i,
                               int64_t end) {
  if (i >= end) return 0;
  const int32_t tile = a.order[i];
  return 0 <= tile && tile < a.tiles ? partials[tile] : kNaN<acc_t>;
}

// The same with lambda per output row, whose columns are many and own few tiles: a thread adds
// one's tiles, in order, to what dots holds of the tile in which the row begins.
template <typename acc_t>
struct RowColumnsKernel {
  using Args = ColumnsArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  struct Shared {};

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared&) {
    block.each_thread([&](int thread) {
      const int64_t i = block.index * kThreads + thread;
      if (i < a.K * a.L) add_tiles(a, i / a.L, i % a.L);
    });
  }

  static MDFT_DEVICE void add_tiles(const Args& a, int64_t k, int64_t l) {
    const int64_t begin = a.starts[l];
    const int64_t end = a.starts[l + 1];
    if (begin == end) return;
    const bool valid = 0 <= begin && begin < end && end <= a.tiles;
    const auto* partials = static_cast<const acc_t*>(a.partials) + k * a.tiles;
    acc_t* dot = static_cast<acc_t*>(a.dots) + (k * a.L + l);
    double sum = valid ? static_cast<double>(*dot) : kNaN<double>;
    for (int64_t i = begin; valid && i < end; ++i) sum += tile_partial(a, partials, i, end);
    *dot = static_cast<acc_t>(sum);
  }
};

// dots[k, l]: a block adds the tiles of one column, in float64, in a tree that depends on their
// number alone.
template <typename acc_t>
struct ColumnsKernel {
  using Args = ColumnsArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kAhead = 8;  // loads in flight a thread: one column may own every tile
  struct Shared {
    double sums[kThreads / kWarp];
  };

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared& shared) {
    const int64_t k = block.index / a.L;
    const int64_t l = block.index % a.L;
    const int64_t begin = a.starts[l];
    const int64_t end = a.starts[l + 1];
    const bool valid = 0 <= begin && begin <= end && end <= a.tiles;
    const auto* partials = static_cast<const acc_t*>(a.partials) + k * a.tiles;
    block.phase([&](int warp) {
      Lanes<double> sum;
      each_lane([&](int lane) {
        sum[lane] = valid ? 0.0 : kNaN<double>;
        for (int64_t i = begin + warp * kWarp + lane; valid && i < end; i += kAhead * kThreads) {
          acc_t part[kAhead];
          MDFT_UNROLL
          for (int j = 0; j < kAhead; ++j)
            part[j] = tile_partial(a, partials, i + j * kThreads, end);
          MDFT_UNROLL
          for (int j = 0; j < kAhead; ++j) sum[lane] += part[j];
        }
      });
      const double all = warp_sum(sum);
      each_lane([&](int lane) {
        if (lane == 0) shared.sums[warp] = all;
      });
    });
    block.each_thread([&](int thread) {
      if (thread != 0) return;
      double sum = 0;
      for (const double part : shared.sums) sum += part;
      static_cast<acc_t*>(a.dots)[block.index] = static_cast<acc_t>(sum);
    });
  }
};

}  // namespace mdft::MDFT_TARGET
