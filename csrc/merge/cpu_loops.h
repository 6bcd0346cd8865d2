// SPDX-License-Identifier: Apache-2.0
// The CPU loops of merge over a range of tiles. Compiled once for each instruction set (cpu.cpp:
// portable; cpu_avx2.cpp), in the namespace mdft::MDFT_TARGET.
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

#include "common/isa/task_vectors.h"
#include "merge/arguments.h"

namespace mdft {

constexpr int kChunk = 4;        // task vectors read side by side
constexpr int kSpan = 256;       // elements of merge's running sums; 128 to 1,024 differ by a tenth
constexpr int kWideSpan = 1024;  // of more than kManyRows rows: each is read in longer runs, and a
                                 // tile ahead is fetched, which the CPU no longer does by itself
constexpr int64_t kManyRows = 8;
static_assert(kTile % kSpan == 0 && kTile % kWideSpan == 0);

// One instruction set's loop over the tiles [begin, end) of the range. `stream`: writes past the
// cache; out is larger than it, and aligned.
using MergeLoop = void (*)(const MergeArgs&, bool stream, int64_t begin, int64_t end);

namespace MDFT_TARGET {

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

// Elements [start, start + n) of the range, all of one column.
template <typename acc_t>
void merge_span(const MergeArgs& a, bool stream, int64_t column, int64_t start, int64_t n) {
  alignas(64) acc_t sums[kWideSpan];
  with_float<acc_t>(a.base_dtype, [&](auto type) {
    using scalar_t = type_of<decltype(type)>;
    const auto* base = static_cast<const scalar_t*>(a.base) + start;
    for (int64_t i = 0; i < n; i += 8) load<acc_t>(base + i, n - i, {}).store(sums + i);
  });
  with_stored<acc_t>(a.deltas_dtype, [&](auto type) {
    const auto deltas = first_element<type_of<decltype(type)>>(a.deltas);
    add_deltas(a, deltas, column, start, n, sums);
  });
  with_float<acc_t>(a.out_dtype, [&](auto type) {
    using scalar_t = type_of<decltype(type)>;
    auto* out = static_cast<scalar_t*>(a.out) + start;
    if (stream && n % kSpan == 0) {
      for (int64_t i = 0; i < n; i += 8) Vec8<acc_t>::load(sums + i).stream(out + i);
    } else {
      for (int64_t i = 0; i < n; i += 8) store(Vec8<acc_t>::load(sums + i), out + i, n - i);
    }
  });
}

template <typename acc_t>
void merge_tiles(const MergeArgs& a, bool stream, int64_t begin, int64_t end) {
  const int64_t span = a.K > kManyRows ? kWideSpan : kSpan;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t start = t * kTile;
    const int64_t n = std::min(kTile, a.n - start);
    for (int64_t i = 0; i < n; i += span) {
      merge_span<acc_t>(a, stream, a.columns[t], start + i, std::min(span, n - i));
    }
  }
#if defined(__AVX2__)
  if (stream) _mm_sfence();
#endif
}

inline void merge_range(const MergeArgs& a, bool stream, int64_t begin, int64_t end) {
  with_accumulator(a.base_dtype,
                   [&](auto acc) { merge_tiles<type_of<decltype(acc)>>(a, stream, begin, end); });
}

}  // namespace MDFT_TARGET
}  // namespace mdft
