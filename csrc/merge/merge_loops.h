// SPDX-License-Identifier: Apache-2.0
// The CPU loops of merge and merge_dots over a range of tiles. Compiled once for each instruction
// set (merge_cpu.cpp: portable; merge_avx2.cpp), in the namespace mdft::MDFT_ISA.
//
// Both are memory bound, and read memory once, whatever K is: a span's running sums (merge) stay in
// L1 while the task vectors stream past, and so does a tile's gradient (merge_dots).
//
// No software prefetch: rows of an arena lie a multiple of 4 KiB apart, so the lines fetched ahead
// of nine of them fall into the same sets of L1 and throw each other out before they are used. It
// halved the speed; see docs/kernels.md.
#pragma once

#include <algorithm>

#include "common/vec8.h"

namespace mdft {

constexpr int kChunk = 4;   // task vectors read side by side
constexpr int kSpan = 256;  // elements of merge's running sums; 128 to 1,024 differ by a tenth
static_assert(kTile % kSpan == 0);

struct MergeArgs {
  const void* base;          // [N]
  const void* deltas;        // [K, N]
  const void* coefficients;  // [K, L], float32 (float64 for float64)
  const int32_t* columns;    // [last - first]: tile -> column
  void* out;                 // elements of tiles [first, last)
  DType base_dtype, deltas_dtype, out_dtype;
  int64_t K, L, N, first;
  bool stream;  // write past the cache: out is larger than it, and aligned
};

struct MergeDotsArgs {
  const void* const* grads;     // [tensors]: the gradient of each tensor, null where absent
  const int64_t* sizes;         // [tensors]: elements of each gradient
  const int64_t* tensor_tiles;  // [tensors + 1]: first tile of each tensor
  const void* deltas;           // [K, N]
  void* partials;               // [K, tiles]: one dot product a tile
  DType grads_dtype, deltas_dtype;
  int64_t tensors, tiles, K, N, first;
};

// What one instruction set offers; begin and end count tiles from `first`.
struct MergeLoops {
  void (*merge)(const MergeArgs&, int64_t begin, int64_t end);
  void (*merge_dots)(const MergeDotsArgs&, int64_t begin, int64_t end);
};

namespace MDFT_ISA {

// sums += c[j] * rows[j], j = 0 .. kRows - 1, in that order.
template <int kRows, typename scalar_t, typename acc_t>
inline void add_rows(const scalar_t* const* rows, const acc_t* c, acc_t* sums, int64_t n) {
  Vec8<acc_t> scale[kRows];
  for (int j = 0; j < kRows; ++j) scale[j] = Vec8<acc_t>::all(c[j]);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Vec8<acc_t> sum = Vec8<acc_t>::load(sums + i);
    for (int j = 0; j < kRows; ++j) {
      sum = fma(scale[j], Vec8<acc_t>::load(rows[j] + i), sum);
    }
    sum.store(sums + i);
  }
  if (i == n) return;
  Vec8<acc_t> sum = Vec8<acc_t>::load(sums + i);  // sums has room for whole vectors
  for (int j = 0; j < kRows; ++j) {
    sum = fma(scale[j], load<acc_t>(rows[j] + i, n - i, scalar_t{}), sum);
  }
  sum.store(sums + i);
}

template <typename scalar_t, typename acc_t>
void add_deltas(const MergeArgs& a, int64_t column, int64_t start, int64_t n, acc_t* sums) {
  const auto* deltas = static_cast<const scalar_t*>(a.deltas) + start;
  const auto* coefficients = static_cast<const acc_t*>(a.coefficients) + column;
  for (int64_t k = 0; k < a.K;) {
    const int64_t left = a.K - k;
    const int rows = left >= kChunk ? kChunk : left >= 2 ? 2 : 1;
    const scalar_t* row[kChunk];
    acc_t c[kChunk];
    for (int j = 0; j < rows; ++j, ++k) {
      row[j] = deltas + k * a.N;
      c[j] = coefficients[k * a.L];
    }
    if (rows == kChunk) add_rows<kChunk>(row, c, sums, n);
    if (rows == 2) add_rows<2>(row, c, sums, n);
    if (rows == 1) add_rows<1>(row, c, sums, n);
  }
}

// Elements [start, start + n) of the arena, all of one column; `to` is their place in out.
template <typename acc_t>
void merge_span(const MergeArgs& a, int64_t column, int64_t start, int64_t to, int64_t n) {
  alignas(64) acc_t sums[kSpan];
  with_type(a.base_dtype, [&](auto* type) {
    auto* base = static_cast<decltype(type)>(a.base) + start;
    if constexpr (sizeof(widen(*base)) == sizeof(acc_t)) {
      for (int64_t i = 0; i < n; i += 8) load<acc_t>(base + i, n - i, {}).store(sums + i);
    }
  });
  with_type(a.deltas_dtype, [&](auto* type) {
    using scalar_t = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    if constexpr (sizeof(widen(scalar_t{})) == sizeof(acc_t)) {
      add_deltas<scalar_t>(a, column, start, n, sums);
    }
  });
  with_type(a.out_dtype, [&](auto* type) {
    using scalar_t = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    auto* out = static_cast<scalar_t*>(a.out) + to;
    if constexpr (sizeof(widen(scalar_t{})) == sizeof(acc_t)) {
      if (a.stream && n == kSpan) {
        for (int64_t i = 0; i < n; i += 8) Vec8<acc_t>::load(sums + i).stream(out + i);
      } else {
        for (int64_t i = 0; i < n; i += 8) store(Vec8<acc_t>::load(sums + i), out + i, n - i);
      }
    }
  });
}

template <typename acc_t>
void merge_tiles(const MergeArgs& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t start = (a.first + t) * kTile;
    const int64_t n = std::min(kTile, a.N - start);
    for (int64_t i = 0; i < n; i += kSpan) {
      merge_span<acc_t>(a, a.columns[t], start + i, t * kTile + i, std::min<int64_t>(kSpan, n - i));
    }
  }
#if defined(__AVX2__)
  if (a.stream) _mm_sfence();
#endif
}

inline void merge_range(const MergeArgs& a, int64_t begin, int64_t end) {
  a.base_dtype == DType::kFloat64 ? merge_tiles<double>(a, begin, end)
                                  : merge_tiles<float>(a, begin, end);
}

// Dot products of one gradient with kRows rows. Four running sums of eight lanes each are added in
// a fixed tree: at most 1024 / 32 + 5 = 37 additions deep, whatever the tensor's size.
template <int kRows, typename acc_t, typename grad_t, typename scalar_t>
inline void dot_rows(const grad_t* grad, const scalar_t* const* rows, int64_t n, acc_t* dots) {
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
      sums[j][lane] = fma(g, load<acc_t>(rows[j] + i, n - i, scalar_t{}), sums[j][lane]);
    }
  }
  for (int j = 0; j < kRows; ++j) {
    dots[j] = sum((sums[j][0] + sums[j][2]) + (sums[j][1] + sums[j][3]));
  }
}

template <typename scalar_t, typename acc_t, typename grad_t>
void dot_deltas(const MergeDotsArgs& a, const grad_t* grad, int64_t t, int64_t n) {
  constexpr int kRows = 8;  // line by line over all of them: tile by tile was a quarter slower
  const auto* deltas = static_cast<const scalar_t*>(a.deltas) + (a.first + t) * kTile;
  auto* partials = static_cast<acc_t*>(a.partials) + t;
  for (int64_t k = 0; k < a.K;) {
    const int64_t left = a.K - k;
    const int rows = left >= kRows ? kRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const scalar_t* row[kRows];
    acc_t dots[kRows];
    for (int j = 0; j < rows; ++j) row[j] = deltas + (k + j) * a.N;
    if (rows == kRows) dot_rows<kRows>(grad, row, n, dots);
    if (rows == 4) dot_rows<4>(grad, row, n, dots);
    if (rows == 2) dot_rows<2>(grad, row, n, dots);
    if (rows == 1) dot_rows<1>(grad, row, n, dots);
    for (int j = 0; j < rows; ++j, ++k) partials[k * a.tiles] = dots[j];
  }
}

template <typename acc_t>
void merge_dots_tiles(const MergeDotsArgs& a, int64_t begin, int64_t end) {
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
    with_type(a.grads_dtype, [&](auto* type) {
      auto* grad = static_cast<decltype(type)>(a.grads[tensor]) + start;
      with_type(a.deltas_dtype, [&](auto* other) {
        using scalar_t = std::remove_const_t<std::remove_pointer_t<decltype(other)>>;
        constexpr bool same = sizeof(widen(*grad)) == sizeof(acc_t);
        if constexpr (same && sizeof(widen(scalar_t{})) == sizeof(acc_t)) {
          dot_deltas<scalar_t, acc_t>(a, grad, t, n);
        }
      });
    });
  }
}

inline void merge_dots_range(const MergeDotsArgs& a, int64_t begin, int64_t end) {
  a.grads_dtype == DType::kFloat64 ? merge_dots_tiles<double>(a, begin, end)
                                   : merge_dots_tiles<float>(a, begin, end);
}

}  // namespace MDFT_ISA
}  // namespace mdft
