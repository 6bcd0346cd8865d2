// SPDX-License-Identifier: Apache-2.0
// The body of merge on a GPU; see common/grid/body.h for what it is written in.
//
// Memory bound: N (b_base + K b_delta + b_out) bytes, each touched once. A thread makes one pack of
// neighbouring outputs, 16 bytes of a task vector. The loads of up to kChunk task vectors are
// issued before the first is used: 144 bytes in flight a thread, where a quarter of the
// multiprocessor's threads with that many already cover the latency of memory. A persistent grid
// that prefetches its next pack would hold twice the registers for bytes already in flight.
//
// Codes (int8, int4) come in packs of 8 bytes: 16 would take 16 or 32 outputs a thread, whose sums
// and base leave too few registers for the threads that keep as many bytes in flight.
//
// Columns lie in device memory, where checking them on the host would wait for the GPU. One that is
// out of range is not read: its tile becomes NaN (unless K = 0). So are rows.
//
// With lambda per output row (kByRow; a kernel of its own, so that the other keeps its registers) a
// pack in which a row ends reads a lambda an element and task vector, from the cache: rows are a
// multiple of a pack long in all but a few tensors.
#pragma once

#include "common/grid/body.h"
#include "common/tile_rows.h"
#include "merge/arguments.h"

namespace mdft::MDFT_TARGET {

// kPack is kFullPack, or what one stored value holds. The first needs rows and all pointers aligned
// to 16 bytes, and n a multiple of kPack: the launcher sees to it. The dtype of out is a branch at
// the end, where nothing waits for it; that of base is a template, for its conversion stands
// between the loads and the first sum.
template <typename scalar_t>
constexpr int kFullPack =
    (Codec<scalar_t>::kScaled ? 8 : kWidestLoad) / sizeof(scalar_t) * Codec<scalar_t>::kPerStored;

template <typename scalar_t, typename base_t, int kPack, bool kByRow>
struct MergeKernel {
  using codec = Codec<scalar_t>;
  using acc_t = typename Accumulate<scalar_t>::type;
  using pack_t = CodecPack<scalar_t, kPack>;
  using Args = MergeArgs;
  struct Shared {};
  static constexpr int kThreads = 256;
  // 72 to 120 KiB in flight on a multiprocessor; of codes by row two thirds: no spills.
  static constexpr int kMinBlocks = kByRow && codec::kScaled ? 2 : 3;
  static constexpr int kChunk = 8;  // task vectors whose loads are in flight together
  static constexpr bool kFull = kPack == kFullPack<scalar_t>;
  static_assert(kTile % kPack == 0, "a pack lies in one tile");
  static_assert(kGroup % kPack == 0, "a pack reads one scale of a task vector");

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared&) {
    block.each_thread([&](int thread) {
      const int64_t i = (block.index * kThreads + thread) * kPack;
      if (i < a.n) merge_pack(a, i);
    });
  }

  static MDFT_DEVICE void merge_pack(const Args& a, int64_t i) {
    acc_t sums[kPack];
    int64_t k = 0;
    if (a.K >= kChunk) {
      add_rows<kChunk, true>(a, i, k, sums);
      for (k = kChunk; k + kChunk <= a.K; k += kChunk) add_rows<kChunk, false>(a, i, k, sums);
      if (a.K & 4) add_rows<4, false>(a, i, k, sums), k += 4;
      if (a.K & 2) add_rows<2, false>(a, i, k, sums), k += 2;
      if (a.K & 1) add_rows<1, false>(a, i, k, sums);
    } else {
      add_rows<0, true>(a, i, k, sums);  // out = base
      if (a.K & 4) add_rows<4, false>(a, i, k, sums), k += 4;
      if (a.K & 2) add_rows<2, false>(a, i, k, sums), k += 2;
      if (a.K & 1) add_rows<1, false>(a, i, k, sums);
    }
    store_out(a, i, sums);
  }

  // sums += lambda_k * row k, k .. k + kRows - 1 in that order; all loads come before the first
  // use. kFirst: sums begins as base, whose load is one of them. Of codes, lambda_k is multiplied
  // by the group's scale first.
  template <int kRows, bool kFirst>
  static MDFT_DEVICE void add_rows(const Args& a, int64_t i, int64_t k, acc_t* sums) {
    const int32_t column = a.columns[static_cast<uint64_t>(i) / kTile];
    const int64_t row = a.N / codec::kPerStored;
    const auto* delta = static_cast<const scalar_t*>(a.deltas) + k * row + i / codec::kPerStored;
    pack_t rows[kRows + 1];
    Pack<base_t, kPack> base;
    acc_t factor[kRows + 1];
    MDFT_UNROLL
    for (int j = 0; j < kRows; ++j) rows[j] = stream_load<pack_t>(delta + j * row);
    if constexpr (kFirst) base = load_base(static_cast<const base_t*>(a.base) + i);
    issue_fence();  // lambda waits for column; the rows need not
    acc_t scale[kRows + 1];
    if constexpr (codec::kScaled) {  // nor the scales
      const int64_t groups = a.N / kGroup;
      const float* scales = a.scales + k * groups + i / kGroup;
      MDFT_UNROLL
      for (int j = 0; j < kRows; ++j) scale[j] = scales[j * groups];
      issue_fence();
    }
    bool inside = 0 <= column && column < a.L;
    int64_t at = column;
    if constexpr (kByRow) {
      const TileRows in = TileRows::of(a.rows, i / kTile);
      inside = inside && in.valid();
      const int e = static_cast<int>(i % kTile);
      if (inside && in.row_of(e) != in.row_of(e + kPack - 1)) {
        if constexpr (kFirst) {
          MDFT_UNROLL
          for (int n = 0; n < kPack; ++n) sums[n] = widen(base.v[n]);
        }
        add_elements<kRows>(a, k, column, in, e, rows, scale, sums);
        return;
      }
      if (inside) at = column_of(a, column, in.row_of(e));
    }
    const auto* lambda = static_cast<const acc_t*>(a.coefficients) + k * a.L + (inside ? at : 0);
    MDFT_UNROLL
    for (int j = 0; j < kRows; ++j) factor[j] = inside ? lambda[j * a.L] : kNaN<acc_t>;
    if constexpr (codec::kScaled) {
      MDFT_UNROLL
      for (int j = 0; j < kRows; ++j) factor[j] *= scale[j];
    }
    MDFT_UNROLL
    for (int e = 0; e < kPack; ++e) {
      if constexpr (kFirst) sums[e] = widen(base.v[e]);
      MDFT_UNROLL
      for (int j = 0; j < kRows; ++j) sums[e] = fused(factor[j], element(rows[j], e), sums[e]);
    }
  }

  // The same for a pack in which rows end, element by element. Row by row it spilled: the widened
  // elements of all task vectors were kept for the next row; the fence keeps the lambdas few.
  template <int kRows>
  static MDFT_DEVICE void add_elements(const Args& a, int64_t k, int64_t column, const TileRows& in,
                                       int first, const pack_t* rows, const acc_t* scale,
                                       acc_t* sums) {
    MDFT_UNROLL
    for (int e = 0; e < kPack; ++e) {
      const auto* lambda = static_cast<const acc_t*>(a.coefficients) + k * a.L +
                           column_of(a, column, in.row_of(first + e));
      acc_t factor[kRows + 1];
      MDFT_UNROLL
      for (int j = 0; j < kRows; ++j) factor[j] = lambda[j * a.L];
      if constexpr (codec::kScaled) {
        MDFT_UNROLL
        for (int j = 0; j < kRows; ++j) factor[j] *= scale[j];
      }
      MDFT_UNROLL
      for (int j = 0; j < kRows; ++j) sums[e] = fused(factor[j], element(rows[j], e), sums[e]);
      issue_fence();
    }
  }

  // Padding may lie beyond the last.
  static MDFT_DEVICE int64_t column_of(const Args& a, int64_t first, int row) {
    return first + row < a.L ? first + row : a.L - 1;
  }

  static MDFT_DEVICE Pack<base_t, kPack> load_base(const base_t* from) {
    if constexpr (kFull) {
      return stream_load<Pack<base_t, kPack>>(from);
    } else {
      Pack<base_t, kPack> pack;
      MDFT_UNROLL
      for (int e = 0; e < kPack; ++e) pack.v[e] = from[e];
      return pack;
    }
  }

  static MDFT_DEVICE void store_out(const Args& a, int64_t i, const acc_t* sums) {
    branch<acc_t>(a.out_dtype, [&](auto type) { store_as<type_of<decltype(type)>>(a, i, sums); });
  }

  template <typename out_t>
  static MDFT_DEVICE void store_as(const Args& a, int64_t i, const acc_t* sums) {
    Pack<out_t, kPack> pack;
    MDFT_UNROLL
    for (int e = 0; e < kPack; ++e) narrow(sums[e], &pack.v[e]);
    auto* out = static_cast<out_t*>(a.out) + i;
    if constexpr (kFull) {
      store(out, pack);
    } else {
      MDFT_UNROLL
      for (int e = 0; e < kPack; ++e) out[e] = pack.v[e];
    }
  }
};

}  // namespace mdft::MDFT_TARGET
