// SPDX-License-Identifier: Apache-2.0
// A tile of several rows in merge_dots on a GPU, with lambda per output row; see gpu_kernel.h.
//
// The lanes of a warp take packs side by side, so the packs of a row are neighbors, but for the end
// of a step. Each lane adds what its pack holds of the row in which it begins, and of the row in
// which it ends; the lane in which a row begins collects the others' parts by a suffix sum over
// lanes, five additions deep, that stops at the row's end. What is open at the end of a step is
// carried into the next one's first lane. That costs the same for rows of any length.
#pragma once

#include "common/tile_rows.h"
#include "merge_dots/gpu_kernel.h"

namespace mdft::MDFT_TARGET {

template <typename Kernel>
struct RowDots {
  using acc_t = typename Kernel::acc_t;
  using Args = DotsKernelArgs;
  using Gradient = typename Kernel::Gradient;
  static constexpr int kPack = Kernel::kPack;
  static constexpr int kSteps = Kernel::kSteps;
  static constexpr int kStep = kWarp * kPack;  // elements

  // Where a tile's results go.
  struct Target {
    TileRows in;
    int n;           // elements of the tensor
    int64_t column;  // of the first row
    acc_t* partial;  // of the first row
    acc_t* dots;     // [L], of the task vector

    MDFT_DEVICE void write(const Args& a, int row, acc_t dot) const {
      if (row == 0) {
        *partial = dot;
      } else if (column + row < a.L) {  // else not ours to write
        dots[column + row] = dot;
      }
    }
  };

  // What packs hold of the rows in which they begin and, where that is another one, end.
  struct Runs {
    acc_t first[kSteps], last[kSteps];
  };

  // The dot products of a tile's rows; nothing, and false, where it has one.
  static MDFT_DEVICE bool dot_tile(const Args& a, int64_t tile, const Lanes<Gradient>& g, int n,
                                   acc_t* partials) {
    const TileRows in = TileRows::of(a.rows, tile);
    const int64_t column = a.columns[tile];
    if (!in.valid() || column < 0 || column >= a.L) {
      each_lane([&](int lane) {
        for (int64_t k = lane; k < a.K; k += kWarp) partials[k * a.tiles] = kNaN<acc_t>;
      });
      return true;
    }
    if (in.row_of(n - 1) == 0) return false;
    Target to{in, n, column, partials, static_cast<acc_t*>(a.dots)};
    dot_from<Kernel::kRows>(a, 0, tile, g, to);
    return true;
  }

  template <int kCount>
  static MDFT_DEVICE void dot_from(const Args& a, int64_t k, int64_t tile, const Lanes<Gradient>& g,
                                   const Target& to) {
    for (; k + kCount <= a.K; k += kCount) dot_vectors<kCount>(a, k, tile, g, to);
    if constexpr (kCount > 1) dot_from<kCount / 2>(a, k, tile, g, to);
  }

  // The dot products of task vectors k .. k + kCount - 1.
  template <int kCount>
  static MDFT_DEVICE void dot_vectors(const Args& a, int64_t k, int64_t tile,
                                      const Lanes<Gradient>& g, const Target& first) {
    Lanes<Runs> runs[kCount];
    Target to[kCount];
    MDFT_UNROLL
    for (int r = 0; r < kCount; ++r) {
      to[r] = first;
      to[r].partial += (k + r) * a.tiles;
      to[r].dots += (k + r) * a.L;
    }
    each_lane([&](int lane) {
      typename Kernel::Loaded loaded[kCount];
      MDFT_UNROLL
      for (int r = 0; r < kCount; ++r) loaded[r] = Kernel::load(a, k + r, tile, lane, first.n);
      MDFT_UNROLL
      for (int r = 0; r < kCount; ++r)
        add_packs(a, loaded[r], g[lane], lane, to[r], &runs[r][lane]);
    });
    MDFT_UNROLL
    for (int r = 0; r < kCount; ++r) collect(a, runs[r], to[r]);
  }

  // A lane's runs. Rows that begin and end within a pack are done here. One loop over rows, most
  // often two, keeps the elements' registers few: an unrolled walk over boundaries spilled.
  static MDFT_DEVICE void add_packs(const Args& a, const typename Kernel::Loaded& loaded,
                                    const Gradient& g, int lane, const Target& to, Runs* runs) {
    MDFT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const int begin = Kernel::offset(s, lane);
      const int row = to.in.row_of(begin);
      const int tail = to.in.row_of(begin + kPack - 1);
      runs->last[s] = 0;
      if (tail == row) {
        runs->first[s] = Kernel::dot_step(loaded, g, s);
        continue;
      }
      for (int at = row; at <= tail; ++at) {
        const int from = to.in.begin(at) - begin, end = to.in.begin(at + 1) - begin;
        const acc_t dot = Kernel::scaled(loaded, s, dot_part(loaded, g, s, from, end));
        if (at == row) {
          runs->first[s] = dot;
        } else if (end > kPack) {
          runs->last[s] = dot;
        } else if (begin + from < to.n) {
          to.write(a, at, dot);
        }
      }
    }
  }

  // Over a pack's elements [from, end).
  static MDFT_DEVICE acc_t dot_part(const typename Kernel::Loaded& loaded, const Gradient& g, int s,
                                    int from, int end) {
    acc_t sum = 0;
    MDFT_UNROLL
    for (int e = 0; e < kPack; ++e) {
      const acc_t more = fused(g.v[s * kPack + e], element(loaded.packs.v[s], e), sum);
      sum = from <= e && e < end ? more : sum;  // not times 0: a neighbor may be infinite
    }
    return sum;
  }

  // Collects the runs of each row, step by step.
  static MDFT_DEVICE void collect(const Args& a, const Lanes<Runs>& runs, const Target& to) {
    acc_t carry = 0;  // of the row that is open where a step begins
    MDFT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const int from = s * kStep;
      if (from >= to.n) return;  // the same in all lanes
      Lanes<acc_t> first, last;
      each_lane([&](int lane) { first[lane] = runs[lane].first[s] + (lane == 0 ? carry : 0); });
      sum_rows(s, to.in, &first);
      const Lanes<acc_t> next = from_beyond(first, 1);
      each_lane([&](int lane) {  // of the row that begins within a pack and reaches beyond it
        last[lane] = runs[lane].last[s] + (lane + 1 < kWarp ? next[lane] : 0);
      });
      each_lane([&](int lane) { write_closed(a, s, lane, first[lane], last[lane], to); });
      const int end = from + kStep;
      const int open = to.in.row_of(end);
      if (to.in.begin(open) == end) {
        carry = 0;
      } else {
        const int begin = to.in.begin(open) - from;  // in the step
        const int owner = begin > 0 ? begin / kPack : 0;
        carry = begin <= 0 || begin % kPack == 0 ? from_lane(first, owner) : from_lane(last, owner);
      }
    }
  }

  // Adds to each lane's sum those of the lanes behind it whose packs begin in the same row.
  static MDFT_DEVICE void sum_rows(int s, const TileRows& in, Lanes<acc_t>* sums) {
    MDFT_UNROLL
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const Lanes<acc_t> beyond = from_beyond(*sums, distance);
      each_lane([&](int lane) {
        const int begin = Kernel::offset(s, lane);
        const int reach = (in.begin(in.row_of(begin) + 1) - 1 - begin) / kPack;  // lanes
        if (distance <= reach && lane + distance < kWarp) (*sums)[lane] += beyond[lane];
      });
    }
  }

  // Writes the rows that begin in a lane's pack, or in lane 0 go on from an earlier step, and end
  // in this step or with the tile.
  static MDFT_DEVICE void write_closed(const Args& a, int s, int lane, acc_t first, acc_t last,
                                       const Target& to) {
    const int begin = Kernel::offset(s, lane);
    const int end = (s + 1) * kStep;
    if (begin >= to.n) return;
    const int row = to.in.row_of(begin);
    const bool over = end >= to.n;  // no step follows
    if ((lane == 0 || to.in.begin(row) == begin) && (over || to.in.begin(row + 1) <= end)) {
      to.write(a, row, first);
    }
    const int tail = to.in.row_of(begin + kPack - 1);
    const int tail_end = to.in.begin(tail + 1);
    if (tail == row || tail_end == begin + kPack || to.in.begin(tail) >= to.n) return;
    if (over || tail_end <= end) to.write(a, tail, last);
  }
};

}  // namespace mdft::MDFT_TARGET
