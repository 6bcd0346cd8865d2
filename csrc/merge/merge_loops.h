// SPDX-License-Identifier: Apache-2.0
// The CPU loops of merge over a range of tiles, and what an instruction set offers. Compiled once
// for each set (merge_cpu.cpp: portable; merge_avx2.cpp), in the namespace mdft::MDFT_ISA.
//
// Memory bound; reads memory once, whatever K is: a span's running sums stay in L1 while the task
// vectors stream past.
//
// No software prefetch into L1: rows of an arena lie a multiple of 4 KiB apart, so the lines
// fetched ahead of nine of them fall into the same sets and throw each other out before they are
// used. It halved the speed. Into L2, and with more rows than the CPU follows by itself, it gains:
// see kManyRows and docs/kernels.md.
#pragma once

#include <algorithm>

#include "merge/merge_dots_loops.h"
#include "merge/merge_rows.h"

namespace mdft {

constexpr int kChunk = 4;        // task vectors read side by side
constexpr int kSpan = 256;       // elements of merge's running sums; 128 to 1,024 differ by a tenth
constexpr int kWideSpan = 1024;  // of more than kManyRows rows: each is read in longer runs, and a
                                 // tile ahead is fetched, which the CPU no longer does by itself
constexpr int64_t kManyRows = 8;
static_assert(kTile % kSpan == 0 && kTile % kWideSpan == 0);

struct MergeArgs {
  const void* base;          // [N]
  const void* deltas;        // [K, N]
  const float* scales;       // [K, N / kGroup], null where deltas are floats
  const void* coefficients;  // [K, L], float32 (float64 for float64)
  const int32_t* columns;    // [last - first]: tile -> column
  void* out;                 // elements of tiles [first, last)
  DType base_dtype, deltas_dtype, out_dtype;
  int64_t K, L, N, first;
  bool stream;  // write past the cache: out is larger than it, and aligned
};

// What one instruction set offers; begin and end count tiles from `first`.
struct MergeLoops {
  void (*merge)(const MergeArgs&, int64_t begin, int64_t end);
  void (*merge_dots)(const MergeDotsArgs&, int64_t begin, int64_t end);
};

namespace MDFT_ISA {

// sums += c[j] * rows[j], j = 0 .. kRows - 1, in that order.
template <int kRows, typename row_t, typename acc_t>
inline void add_rows(const row_t* rows, const acc_t* c, acc_t* sums, int64_t n) {
  Vec8<acc_t> factor[kRows];
  for (int j = 0; j < kRows; ++j) factor[j] = Vec8<acc_t>::all(c[j]);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Vec8<acc_t> sum = Vec8<acc_t>::load(sums + i);
    for (int j = 0; j < kRows; ++j) {
      sum = fma(factor[j], Vec8<acc_t>::load(rows[j] + i), sum);
    }
    sum.store(sums + i);
  }
  if constexpr (!kScaled<row_t>) {  // codes come in whole groups
    if (i == n) return;
    Vec8<acc_t> sum = Vec8<acc_t>::load(sums + i);  // sums has room for whole vectors
    for (int j = 0; j < kRows; ++j) {
      sum = fma(factor[j], load<acc_t>(rows[j] + i, n - i, stored_t<row_t>{}), sum);
    }
    sum.store(sums + i);
  }
}

// `deltas` points to element `start` of the first row, `scales` to its group's.
template <int kRows, typename row_t, typename acc_t>
void add_runs(const MergeArgs& a, row_t deltas, const float* scales, const acc_t* coefficients,
              int64_t n, acc_t* sums) {
  constexpr int64_t kRun = kScaled<row_t> ? kGroup : kSpan;  // elements of one factor
  for (int64_t i = 0; i < n; i += kRun) {
    row_t row[kRows];
    acc_t c[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = deltas + (j * a.N + i);
      c[j] = coefficients[j * a.L];
      if constexpr (kScaled<row_t>) c[j] *= scales[(j * a.N + i) / kGroup];
      if (a.K > kManyRows) fetch(row[j] + kTile, kRun);
    }
    add_rows<kRows>(row, c, sums + i, std::min(kRun, n - i));
  }
}

template <typename row_t, typename acc_t>
void add_deltas(const MergeArgs& a, row_t deltas, int64_t column, int64_t start, int64_t n,
                acc_t* sums) {
  const auto* coefficients = static_cast<const acc_t*>(a.coefficients) + column;
  in_chunks<kChunk>(a.K, [&](auto rows, int64_t k) {
    const int64_t at = k * a.N + start;
    const float* scales = kScaled<row_t> ? a.scales + at / kGroup : nullptr;
    add_runs<rows.value>(a, deltas + at, scales, coefficients + k * a.L, n, sums);
  });
}

// Elements [start, start + n) of the arena, all of one column; `to` is their place in out.
template <typename acc_t>
void merge_span(const MergeArgs& a, int64_t column, int64_t start, int64_t to, int64_t n) {
  alignas(64) acc_t sums[kWideSpan];
  with_type(a.base_dtype, [&](auto* type) {
    auto* base = static_cast<decltype(type)>(a.base) + start;
    if constexpr (sizeof(widen(*base)) == sizeof(acc_t)) {
      for (int64_t i = 0; i < n; i += 8) load<acc_t>(base + i, n - i, {}).store(sums + i);
    }
  });
  with_rows(a.deltas_dtype, a.deltas, [&](auto deltas) {
    if constexpr (sums_in<decltype(deltas), acc_t>) add_deltas(a, deltas, column, start, n, sums);
  });
  with_type(a.out_dtype, [&](auto* type) {
    using scalar_t = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    auto* out = static_cast<scalar_t*>(a.out) + to;
    if constexpr (sizeof(widen(scalar_t{})) == sizeof(acc_t)) {
      if (a.stream && n % kSpan == 0) {
        for (int64_t i = 0; i < n; i += 8) Vec8<acc_t>::load(sums + i).stream(out + i);
      } else {
        for (int64_t i = 0; i < n; i += 8) store(Vec8<acc_t>::load(sums + i), out + i, n - i);
      }
    }
  });
}

template <typename acc_t>
void merge_tiles(const MergeArgs& a, int64_t begin, int64_t end) {
  const int64_t span = a.K > kManyRows ? kWideSpan : kSpan;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t start = (a.first + t) * kTile;
    const int64_t n = std::min(kTile, a.N - start);
    for (int64_t i = 0; i < n; i += span) {
      merge_span<acc_t>(a, a.columns[t], start + i, t * kTile + i, std::min(span, n - i));
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

}  // namespace MDFT_ISA
}  // namespace mdft
