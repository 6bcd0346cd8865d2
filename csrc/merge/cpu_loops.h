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
#include "common/tile_rows.h"
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

// Elements of one column.
struct OneColumn {
  int64_t column;
};

// Elements of several rows: the column of each, eight by eight; of eight that share one, the first
// and the last alone.
struct ColumnOfEach {
  const int32_t* columns;
};

// The same as add_rows for elements that do not share a column; lambda times scale is c.
template <int kRows, typename row_t, typename acc_t>
inline void add_rows_of_each(const row_t* rows, const acc_t* coefficients, int64_t L,
                             const float* scale, const int32_t* columns, acc_t* sums, int64_t n) {
  for (int64_t i = 0; i < n; i += 8) {
    const bool one = columns[i] == columns[i + 7];
    Vec8<acc_t> sum = Vec8<acc_t>::load(sums + i);
    for (int j = 0; j < kRows; ++j) {
      const acc_t* lambda = coefficients + j * L;
      auto factor =
          one ? Vec8<acc_t>::all(lambda[columns[i]]) : Vec8<acc_t>::gather(lambda, columns + i);
      if constexpr (kScaled<row_t>) {  // codes come in whole groups
        factor = mul(factor, Vec8<acc_t>::all(scale[j]));
        sum = fma(factor, Vec8<acc_t>::load(rows[j] + i), sum);
      } else {
        sum = fma(factor, load<acc_t>(rows[j] + i, n - i, stored_t<row_t>{}), sum);
      }
    }
    sum.store(sums + i);  // sums has room for whole vectors
  }
}

// `deltas` points to element `start` of the first row, `scales` to its group's, `coefficients` to
// the row's first column.
template <int kRows, typename columns_t, typename row_t, typename acc_t>
void add_runs(const MergeArgs& a, row_t deltas, const float* scales, const acc_t* coefficients,
              columns_t columns, int64_t n, acc_t* sums) {
  constexpr int64_t kRun = kScaled<row_t> ? kGroup : kSpan;  // elements of one factor
  for (int64_t i = 0; i < n; i += kRun) {
    row_t row[kRows];
    [[maybe_unused]] acc_t c[kRows];
    [[maybe_unused]] float scale[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = deltas + (j * a.N + i);
      if constexpr (kScaled<row_t>) scale[j] = scales[(j * a.N + i) / kGroup];
      if (a.K > kManyRows) fetch(row[j] + kTile, kRun);
      if constexpr (std::is_same_v<columns_t, OneColumn>) {
        c[j] = coefficients[j * a.L + columns.column];
        if constexpr (kScaled<row_t>) c[j] *= scale[j];
      }
    }
    const int64_t run = std::min(kRun, n - i);
    if constexpr (std::is_same_v<columns_t, OneColumn>) {
      add_rows<kRows>(row, c, sums + i, run);
    } else {
      add_rows_of_each<kRows>(row, coefficients, a.L, scale, columns.columns + i, sums + i, run);
    }
  }
}

template <typename columns_t, typename row_t, typename acc_t>
void add_deltas(const MergeArgs& a, row_t deltas, columns_t columns, int64_t start, int64_t n,
                acc_t* sums) {
  const auto* coefficients = static_cast<const acc_t*>(a.coefficients);
  in_chunks<kChunk>(a.K, [&](auto rows, int64_t k) {
    const int64_t at = k * a.N + start;
    const float* scales = kScaled<row_t> ? a.scales + at / kGroup : nullptr;
    add_runs<rows.value>(a, deltas + at, scales, coefficients + k * a.L, columns, n, sums);
  });
}

// Elements [start, start + n) of the range.
template <typename acc_t, typename columns_t>
void merge_span(const MergeArgs& a, bool stream, columns_t columns, int64_t start, int64_t n) {
  alignas(64) acc_t sums[kWideSpan];
  with_float<acc_t>(a.base_dtype, [&](auto type) {
    using scalar_t = type_of<decltype(type)>;
    const auto* base = static_cast<const scalar_t*>(a.base) + start;
    for (int64_t i = 0; i < n; i += 8) load<acc_t>(base + i, n - i, {}).store(sums + i);
  });
  with_stored<acc_t>(a.deltas_dtype, [&](auto type) {
    const auto deltas = first_element<type_of<decltype(type)>>(a.deltas);
    add_deltas(a, deltas, columns, start, n, sums);
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

// The columns of elements [start, start + n) of a tile, as ColumnOfEach has them.
inline void columns_of_each(const MergeArgs& a, TileRows rows, int64_t first, int64_t start,
                            int64_t n, int32_t* columns) {
  const int64_t last = a.L - 1;  // padding may lie beyond
  int64_t row = (rows.phase + start) / rows.length;
  int64_t at = (rows.phase + start) % rows.length;  // of the row's elements
  for (int64_t i = 0; i < n; i += 8) {
    const bool one = at + 8 <= rows.length;
    for (int e = 0; e < 8; e += one ? 7 : 1) {
      columns[i + e] = static_cast<int32_t>(std::min(first + row, last));
      if (!one && ++at == rows.length) at = 0, ++row;
    }
    if (one && (at += 8) == rows.length) at = 0, ++row;
  }
}

template <typename acc_t>
void merge_tiles(const MergeArgs& a, bool stream, int64_t begin, int64_t end) {
  const int64_t span = a.K > kManyRows ? kWideSpan : kSpan;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t start = t * kTile;
    const int64_t n = std::min(kTile, a.n - start);
    const TileRows rows = TileRows::of(a.rows, t);
    const bool one = rows.row_of(static_cast<int>(n) - 1) == 0;
    for (int64_t i = 0; i < n; i += span) {
      const int64_t count = std::min(span, n - i);
      if (one) {
        merge_span<acc_t>(a, stream, OneColumn{a.columns[t]}, start + i, count);
      } else {
        alignas(64) int32_t columns[kWideSpan];
        columns_of_each(a, rows, a.columns[t], i, count, columns);
        merge_span<acc_t>(a, stream, ColumnOfEach{columns}, start + i, count);
      }
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
