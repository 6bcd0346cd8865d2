// SPDX-License-Identifier: Apache-2.0
// The CPU loops of merge_dots over a range of tiles. Compiled once for each instruction set
// (cpu.cpp: portable; cpu_avx2.cpp), in the namespace mdft::MDFT_TARGET.
//
// Memory bound; reads memory once, whatever K is: a tile's gradient stays in L1 while the task
// vectors stream past.
#pragma once

#include <algorithm>

#include "common/isa/task_vectors.h"
#include "common/tile_rows.h"

namespace mdft {

struct DotsLoopArgs {
  const void* const* grads;     // [tensors]: the gradient of each tensor, null where absent
  const int64_t* sizes;         // [tensors]: elements of each gradient
  const int64_t* tensor_tiles;  // [tensors + 1]: first tile of each tensor
  const void* deltas;           // [K, N], of the range's first tile
  const float* scales;          // [K, N / kGroup], likewise; null where deltas are floats
  void* partials;               // [K, tiles]: one dot product a tile
  DType grads_dtype, deltas_dtype;
  int64_t tensors, tiles, K, N;
  const int32_t* columns;  // [tiles], of each tile's first element, and
  const int32_t* rows;     // [tiles, 2], length and phase of its rows; null: one column a tile
  void* dots;              // [K, L]: rows that begin within a tile
  int64_t L;
};

// One instruction set's loop over the tiles [begin, end) of the range.
using DotsLoop = void (*)(const DotsLoopArgs&, int64_t begin, int64_t end);

namespace MDFT_TARGET {

// Dot products of one gradient with kRows rows. Four running sums of eight lanes each are added in
// a fixed tree: at most 1024 / 32 + 5 = 37 additions deep, whatever the tensor's size.
template <int kRows, typename acc_t, typename grad_t, typename row_t>
inline void dot_rows(const grad_t* grad, const row_t* rows, int64_t n, acc_t* dots) {
  constexpr int kLanes = 4;
  Vec8<acc_t> sums[kRows][kLanes];
  for (auto& row : sums) {
    for (auto& s : row) s = Vec8<acc_t>::all(0);
  }
  int64_t i = 0;
  for (; i + 8 * kLanes <= n; i += 8 * kLanes) {
    Vec8<acc_t> g[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) g[lane] = Vec8<acc_t>::load(grad + i + 8 * lane);
    for (int j = 0; j < kRows; ++j) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto row = Vec8<acc_t>::load(rows[j] + i + 8 * lane);
        sums[j][lane] = fma(g[lane], row, sums[j][lane]);
      }
    }
  }
  for (int lane = 0; i < n; i += 8, ++lane) {  // the tail
    const Vec8<acc_t> g = load<acc_t>(grad + i, n - i, grad_t{});
    for (int j = 0; j < kRows; ++j) {
      sums[j][lane] = fma(g, load<acc_t>(rows[j] + i, n - i, stored_t<row_t>{}), sums[j][lane]);
    }
  }
  for (int j = 0; j < kRows; ++j) {
    dots[j] = sum((sums[j][0] + sums[j][2]) + (sums[j][1] + sums[j][3]));
  }
}

// The dot products of rows k .. k + kRows - 1 with the first n elements of a tile. `deltas` points
// to the tile's first element in row k.
template <int kRows, typename row_t, typename acc_t, typename grad_t>
void dot_floats(const DotsLoopArgs& a, row_t deltas, const grad_t* grad, int64_t n, acc_t* dots) {
  row_t row[kRows];
  for (int j = 0; j < kRows; ++j) row[j] = deltas + j * a.N;
  dot_rows<kRows>(grad, row, n, dots);
}

// totals[j] += scale[j] * <grad, rows[j]> for one group, or a multiple of eight of its elements,
// lane by lane.
template <int kRows, typename row_t, typename acc_t, typename count_t>
inline void dot_group(const acc_t* grad, const row_t* rows, const float* scale, count_t n,
                      Vec8<acc_t>* totals) {
  Vec8<acc_t> sums[kRows][2];
  for (auto& row : sums) row[0] = row[1] = Vec8<acc_t>::all(0);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Vec8<acc_t> g[2] = {Vec8<acc_t>::load(grad + i), Vec8<acc_t>::load(grad + i + 8)};
    for (int j = 0; j < kRows; ++j) {
      sums[j][0] = fma(g[0], Vec8<acc_t>::load(rows[j] + i), sums[j][0]);
      sums[j][1] = fma(g[1], Vec8<acc_t>::load(rows[j] + (i + 8)), sums[j][1]);
    }
  }
  if (i < n) {
    const auto g = Vec8<acc_t>::load(grad + i);
    for (int j = 0; j < kRows; ++j) {
      sums[j][0] = fma(g, Vec8<acc_t>::load(rows[j] + i), sums[j][0]);
    }
  }
  for (int j = 0; j < kRows; ++j) {
    totals[j] = fma(Vec8<acc_t>::all(scale[j]), sums[j][0] + sums[j][1], totals[j]);
  }
}

// Elements from a group to the one that is fetched with it. Codes take so long to decode that what
// the CPU fetches on its own comes too late: int8 gained 10 to 18 %, int4 at most half of that, on
// a busy machine. (Floats lost by it, merge did not change.)
constexpr int64_t kAhead = 2048;

// The same as dot_floats for codes; `grad` has zeros from the tensor's end to the group's. A sum is
// at most 8 + 1 deep in a group, then 8 groups and 3 levels: 20 additions and two products.
template <int kRows, typename row_t, typename acc_t>
void dot_codes(const DotsLoopArgs& a, row_t deltas, const float* scales, const acc_t* grad,
               int64_t n, acc_t* dots) {
  constexpr int kTogether = kRows < 4 ? kRows : 4;  // their sums and the gradient fill registers
  Vec8<acc_t> totals[kRows];
  for (auto& total : totals) total = Vec8<acc_t>::all(0);
  for (int64_t i = 0; i < n; i += kGroup) {
    row_t row[kRows];
    float scale[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = deltas + (j * a.N + i);
      scale[j] = scales[(j * a.N + i) / kGroup];
      fetch(row[j] + kAhead, kGroup);
    }
    for (int j = 0; j < kRows; j += kTogether) {
      constexpr std::integral_constant<int64_t, kGroup> kWhole;
      dot_group<kTogether>(grad + i, row + j, scale + j, kWhole, totals + j);
    }
  }
  for (int j = 0; j < kRows; ++j) dots[j] = sum(totals[j]);
}

// The same for the elements [begin, end) of a tile, multiples of eight. `deltas` and `scales` point
// to the tile's first, as does `grad`.
template <int kRows, typename row_t, typename acc_t>
void dot_some_codes(const DotsLoopArgs& a, row_t deltas, const float* scales, const acc_t* grad,
                    int64_t begin, int64_t end, acc_t* dots) {
  constexpr int kTogether = kRows < 4 ? kRows : 4;
  Vec8<acc_t> totals[kRows];
  for (auto& total : totals) total = Vec8<acc_t>::all(0);
  for (int64_t i = begin; i < end;) {
    const int64_t n = std::min(end, (i / kGroup + 1) * kGroup) - i;  // of one group
    row_t row[kRows];
    float scale[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = deltas + (j * a.N + i);
      scale[j] = scales[(j * a.N + i) / kGroup];
      fetch(row[j] + kAhead, n);
    }
    for (int j = 0; j < kRows; j += kTogether) {
      dot_group<kTogether>(grad + i, row + j, scale + j, n, totals + j);
    }
    i += n;
  }
  for (int j = 0; j < kRows; ++j) dots[j] = sum(totals[j]);
}

// The first n elements of a gradient's tile, and zeros up to the end of the group.
template <typename acc_t, typename grad_t>
void widen_tile(const grad_t* grad, int64_t n, acc_t* wide) {
  for (int64_t i = 0; i < n; i += 8) load<acc_t>(grad + i, n - i, grad_t{}).store(wide + i);
  for (int64_t i = (n + 7) / 8 * 8; i % kGroup != 0; i += 8) Vec8<acc_t>::all(0).store(wide + i);
}

// Line by line over eight rows: tile by tile, one row after another, was a quarter slower.
template <typename row_t, typename acc_t, typename grad_t>
void dot_deltas(const DotsLoopArgs& a, row_t deltas, const grad_t* grad, int64_t t, int64_t n) {
  const int64_t start = t * kTile;
  auto* partials = static_cast<acc_t*>(a.partials) + t;
  [[maybe_unused]] alignas(64) acc_t wide[kScaled<row_t> ? kTile : 1];
  if constexpr (kScaled<row_t>) widen_tile(grad, n, wide);
  in_chunks<8>(a.K, [&](auto rows, int64_t k) {
    acc_t dots[rows.value];
    const int64_t at = k * a.N + start;
    if constexpr (kScaled<row_t>) {
      dot_codes<rows.value>(a, deltas + at, a.scales + at / kGroup, wide, n, dots);
    } else {
      dot_floats<rows.value>(a, deltas + at, grad, n, dots);
    }
    for (int j = 0; j < rows.value; ++j) partials[(k + j) * a.tiles] = dots[j];
  });
}

// A tile of several rows. What it holds of its first row is a partial like a whole tile's; a row
// that begins here goes to its own column: no other tile writes there.
template <typename row_t, typename acc_t, typename grad_t>
void dot_by_row(const DotsLoopArgs& a, row_t deltas, const grad_t* grad, int64_t t, int64_t n) {
  const TileRows in = TileRows::of(a.rows, t);
  [[maybe_unused]] alignas(64) acc_t wide[kScaled<row_t> ? kTile : 1];
  [[maybe_unused]] alignas(64) acc_t alone[kScaled<row_t> ? kTile : 1];  // zeros beside the row
  if constexpr (kScaled<row_t>) widen_tile(grad, n, wide);
  const int rows_here = in.row_of(static_cast<int>(n) - 1) + 1;
  for (int r = 0; r < rows_here; ++r) {
    const int64_t begin = std::max(in.begin(r), 0);
    const int64_t end = std::min<int64_t>(in.begin(r + 1), n);
    const int64_t first = begin / 8 * 8, last = (end + 7) / 8 * 8;
    if constexpr (kScaled<row_t>) {
      std::fill(alone + first, alone + begin, acc_t{0});
      std::copy(wide + begin, wide + end, alone + begin);
      std::fill(alone + end, alone + last, acc_t{0});
    }
    auto* to = r == 0 ? static_cast<acc_t*>(a.partials) + t
                      : static_cast<acc_t*>(a.dots) + (a.columns[t] + r);
    const int64_t stride = r == 0 ? a.tiles : a.L;
    in_chunks<8>(a.K, [&](auto rows, int64_t k) {
      acc_t dots[rows.value];
      const int64_t at = k * a.N + t * kTile;
      if constexpr (kScaled<row_t>) {
        const float* scales = a.scales + at / kGroup;
        dot_some_codes<rows.value>(a, deltas + at, scales, alone, first, last, dots);
      } else {
        dot_floats<rows.value>(a, deltas + (at + begin), grad + begin, end - begin, dots);
      }
      for (int j = 0; j < rows.value; ++j) to[(k + j) * stride] = dots[j];
    });
  }
}

template <typename acc_t>
void merge_dots_tiles(const DotsLoopArgs& a, int64_t begin, int64_t end) {
  int64_t tensor =
      std::upper_bound(a.tensor_tiles, a.tensor_tiles + a.tensors + 1, begin) - a.tensor_tiles - 1;
  for (int64_t t = begin; t < end; ++t) {
    while (t >= a.tensor_tiles[tensor + 1]) ++tensor;
    const int64_t start = (t - a.tensor_tiles[tensor]) * kTile;
    const int64_t n = std::min(kTile, a.sizes[tensor] - start);
    if (a.grads[tensor] == nullptr) {
      for (int64_t k = 0; k < a.K; ++k) static_cast<acc_t*>(a.partials)[k * a.tiles + t] = 0;
      continue;
    }
    with_float<acc_t>(a.grads_dtype, [&](auto grad_type) {
      const auto* grad = static_cast<const type_of<decltype(grad_type)>*>(a.grads[tensor]) + start;
      with_stored<acc_t>(a.deltas_dtype, [&](auto type) {
        const auto deltas = first_element<type_of<decltype(type)>>(a.deltas);
        using row_t = std::remove_const_t<decltype(deltas)>;
        if (TileRows::of(a.rows, t).row_of(static_cast<int>(n) - 1) == 0) {
          dot_deltas<row_t, acc_t>(a, deltas, grad, t, n);
        } else {
          dot_by_row<row_t, acc_t>(a, deltas, grad, t, n);
        }
      });
    });
  }
}

inline void merge_dots_range(const DotsLoopArgs& a, int64_t begin, int64_t end) {
  with_accumulator(a.grads_dtype,
                   [&](auto acc) { merge_dots_tiles<type_of<decltype(acc)>>(a, begin, end); });
}

}  // namespace MDFT_TARGET
}  // namespace mdft
