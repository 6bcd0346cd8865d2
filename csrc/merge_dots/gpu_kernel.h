// SPDX-License-Identifier: Apache-2.0
// The bodies of merge_dots on a GPU; see common/grid/body.h for what they are written in.
//
// Memory bound: N (b_grad + K b_delta) bytes. A warp takes a tile: its gradient stays in registers
// while the K task vectors stream past, so it is read once whatever K is. A second kernel adds each
// column's tiles; one in which the last block to finish does that would save a launch (some 2 us)
// and cost a counter to clear.
//
// A pack of codes (int8, int4) lies within a group: the sum over it is multiplied by its scale.
//
// order and starts lie in device memory, where checking them on the host would wait for the GPU.
// An index that is out of range is not read: its dot product becomes NaN.
#pragma once

#include "common/grid/body.h"

namespace mdft::MDFT_TARGET {

// Gradients by value: a launch's parameters hold at most 4 KiB, so no copy to the device is needed
// and nothing outlives the call. More tensors take more launches.
struct GradientTable {
  static constexpr int kTensors = 256;
  const void* grads[kTensors];  // null where absent
  int32_t tiles[kTensors + 1];  // first tile of each tensor, counted from the range's first
  uint16_t tails[kTensors];     // elements of each tensor's last tile, 1 .. kTile
};

struct DotsKernelArgs {
  GradientTable table;
  const void* deltas;   // [K, N], of the range's first tile
  const float* scales;  // [K, N / kGroup], likewise; null where deltas are floats
  void* partials;       // [K, tiles]
  DType grads_dtype;
  bool wide;        // deltas can be read 16 bytes at a time
  int32_t tensors;  // in this table
  int64_t K, N, tiles;
  const int32_t* columns;  // [tiles], of each tile's first element, and
  const int32_t* rows;     // [tiles, 2], length and phase of its rows; null: one column a tile
  void* dots;              // [K, L]: rows that begin within a tile
  int64_t L;
};
static_assert(sizeof(DotsKernelArgs) <= 4096, "the least that every driver takes as parameters");

template <typename Kernel>
struct RowDots;  // gpu_row_dots.h

// One partial dot product per task vector and tile; kByRow: with lambda per output row, for which
// there is a kernel of its own, so that the other keeps its registers. Which lane adds which
// element, and in which order, depends on the dtype of deltas alone, not on alignment: equal
// values, equal bits.
template <typename scalar_t, bool kByRow>
struct DotsKernel {
  using codec = Codec<scalar_t>;
  using acc_t = typename Accumulate<scalar_t>::type;
  using Args = DotsKernelArgs;
  struct Shared {};
  static constexpr int kThreads = 128;
  // No spills.
  static constexpr bool kFew = sizeof(scalar_t) == sizeof(double) || (kByRow && codec::kScaled);
  static constexpr int kMinBlocks = kFew ? 2 : kByRow ? 3 : 4;
  static constexpr int kPack = kWidestLoad / sizeof(scalar_t) * codec::kPerStored;
  static constexpr int kSteps = static_cast<int>(kTile) / (kWarp * kPack);
  static constexpr int kInLane = kSteps * kPack;             // elements of a tile in one lane
  static constexpr int kSums = kPack < 4 ? kPack : 4;        // running sums in a lane
  static constexpr int kRows = kSteps < 8 ? 8 / kSteps : 1;  // 8 loads in flight a thread, or more
  static_assert(kGroup % kPack == 0, "a pack reads one scale of a task vector");
  template <typename from_t>
  struct Packs {
    CodecPack<from_t, kPack> v[kSteps];
  };
  struct Gradient {
    acc_t v[kInLane];
  };
  struct Scales {
    float v[codec::kScaled ? kSteps : 1];  // of each pack
  };

  struct Loaded {
    Packs<scalar_t> packs;
    Scales scales;
  };

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared&) {
    const int64_t begin = a.table.tiles[0];
    const int64_t end = a.table.tiles[a.tensors];
    block.each_warp([&](int warp) {
      const int64_t tile = begin + block.index * block.kWarps + warp;
      if (tile < end) dot_tile(a, tile);
    });
  }

  static MDFT_DEVICE void dot_tile(const Args& a, int64_t tile) {
    int low = 0, high = a.tensors;  // the tensor with tiles[low] <= tile < tiles[low + 1]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (a.table.tiles[middle] <= tile ? low : high) = middle;
    }
    const void* grad = a.table.grads[low];
    auto* partials = static_cast<acc_t*>(a.partials) + tile;
    if (grad == nullptr) {
      each_lane([&](int lane) {
        for (int64_t k = lane; k < a.K; k += kWarp) partials[k * a.tiles] = 0;
      });
      return;
    }
    const int n = tile + 1 < a.table.tiles[low + 1] ? static_cast<int>(kTile) : a.table.tails[low];
    const Lanes<Gradient> g = load_gradient(a, grad, (tile - a.table.tiles[low]) * kTile, n);
    if constexpr (kByRow) {
      if (RowDots<DotsKernel>::dot_tile(a, tile, g, n, partials)) return;
    }
    if constexpr (codec::kScaled) {  // one by one, stored values take many registers
      a.wide ? dot_from<kRows, true>(a, 0, tile, g, n, partials)
             : dot_from<1, false>(a, 0, tile, g, n, partials);
    } else {
      dot_from<kRows, false>(a, 0, tile, g, n, partials);
    }
  }

  // The dot products of task vectors k .. K - 1, kCount at a time, then half as many.
  template <int kCount, bool kWhole>
  static MDFT_DEVICE void dot_from(const Args& a, int64_t k, int64_t tile, const Lanes<Gradient>& g,
                                   int n, acc_t* partials) {
    for (; k + kCount <= a.K; k += kCount) dot_rows<kCount, kWhole>(a, k, tile, g, n, partials);
    if constexpr (kCount > 1) dot_from<kCount / 2, kWhole>(a, k, tile, g, n, partials);
  }

  // The dot products of task vectors k .. k + kCount - 1. kWhole: see load_whole.
  template <int kCount, bool kWhole>
  static MDFT_DEVICE void dot_rows(const Args& a, int64_t k, int64_t tile, const Lanes<Gradient>& g,
                                   int n, acc_t* partials) {
    const int64_t length = a.N / codec::kPerStored;
    const auto* row =
        static_cast<const scalar_t*>(a.deltas) + k * length + tile * (kTile / codec::kPerStored);
    Lanes<acc_t> sums[kCount];
    each_lane([&](int lane) {
      Packs<scalar_t> packs[kCount];
      Scales scales[kCount];
      if constexpr (kWhole) {
        MDFT_UNROLL
        for (int r = 0; r < kCount; ++r) packs[r] = load_whole(row + r * length, lane, n);
      } else if (!codec::kScaled && a.wide && n == kTile) {
        MDFT_UNROLL
        for (int r = 0; r < kCount; ++r) packs[r] = load_wide(row + r * length, lane);
      } else {
        MDFT_UNROLL
        for (int r = 0; r < kCount; ++r) packs[r] = load_some(row + r * length, lane, n);
      }
      MDFT_UNROLL
      for (int r = 0; r < kCount; ++r) scales[r] = load_scales(a, k + r, tile, lane, n);
      MDFT_UNROLL
      for (int r = 0; r < kCount; ++r) sums[r][lane] = dot_lane(packs[r], scales[r], g[lane]);
    });
    MDFT_UNROLL
    for (int r = 0; r < kCount; ++r) {
      const acc_t dot = warp_sum(sums[r]);
      each_lane([&](int lane) {
        if (lane == 0) partials[(k + r) * a.tiles] = dot;
      });
    }
  }

  // The first of the elements that a lane takes in a step.
  static MDFT_DEVICE int offset(int step, int lane) { return (step * kWarp + lane) * kPack; }

  // A whole tile.
  template <typename from_t>
  static MDFT_DEVICE Packs<from_t> load_wide(const from_t* from, int lane) {
    constexpr int kPer = Codec<from_t>::kPerStored;
    Packs<from_t> packs;
    MDFT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      packs.v[s] = stream_load<CodecPack<from_t, kPack>>(from + offset(s, lane) / kPer);
    }
    return packs;
  }

  // Of codes: a pack that begins before element n ends within its group, so it can be read; in the
  // place of the others stands the tile's first. There, and from element n on, codes meet a
  // gradient of zero, and are finite whatever they are.
  static MDFT_DEVICE Packs<scalar_t> load_whole(const scalar_t* from, int lane, int n) {
    Packs<scalar_t> packs;
    MDFT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const int at = offset(s, lane) < n ? offset(s, lane) : 0;
      packs.v[s] = stream_load<CodecPack<scalar_t, kPack>>(from + at / codec::kPerStored);
    }
    return packs;
  }

  // Zeros from element n on. Padding is not read: it need not be finite.
  template <typename from_t>
  static MDFT_DEVICE Packs<from_t> load_some(const from_t* from, int lane, int n) {
    constexpr int kPer = Codec<from_t>::kPerStored;
    constexpr int kStored = kPack / kPer;  // in a pack
    Packs<from_t> packs{};
    MDFT_UNROLL
    for (int i = 0; i < kInLane / kPer; ++i) {
      const int at = offset(i / kStored, lane) + i % kStored * kPer;
      if (at < n) packs.v[i / kStored].v[i % kStored] = from[at / kPer];
    }
    return packs;
  }

  // Zero for a pack that begins at element n or beyond: its own may be anything, or not there.
  static MDFT_DEVICE Scales load_scales(const Args& a, int64_t k, int64_t tile, int lane, int n) {
    Scales scales{};
    if constexpr (codec::kScaled) {
      const float* from = a.scales + k * (a.N / kGroup) + tile * (kTile / kGroup);
      MDFT_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        if (offset(s, lane) < n) scales.v[s] = from[offset(s, lane) / static_cast<int>(kGroup)];
      }
    }
    return scales;
  }

  // For RowDots: what a lane reads of a task vector, the dot product of one of its packs, and the
  // sum over codes times their scale.
  static MDFT_DEVICE Loaded load(const Args& a, int64_t k, int64_t tile, int lane, int n) {
    const auto* row =
        static_cast<const scalar_t*>(a.deltas) + (k * a.N + tile * kTile) / codec::kPerStored;
    Loaded loaded;
    if constexpr (codec::kScaled) {
      loaded.packs = a.wide ? load_whole(row, lane, n) : load_some(row, lane, n);
    } else {
      loaded.packs = a.wide && n == kTile ? load_wide(row, lane) : load_some(row, lane, n);
    }
    loaded.scales = load_scales(a, k, tile, lane, n);
    return loaded;
  }
  static MDFT_DEVICE acc_t dot_step(const Loaded& loaded, const Gradient& g, int s) {
    return scaled(loaded, s, dot_steps(loaded.packs, g, s, s + 1));
  }
  static MDFT_DEVICE acc_t scaled(const Loaded& loaded, int s, acc_t sum) {
    if constexpr (codec::kScaled) sum *= loaded.scales.v[s];
    return sum;
  }

  static MDFT_DEVICE acc_t dot_lane(const Packs<scalar_t>& packs, const Scales& scales,
                                    const Gradient& g) {
    if constexpr (!codec::kScaled) {
      return dot_steps(packs, g, 0, kSteps);
    } else {
      acc_t sum = 0;
      MDFT_UNROLL
      for (int s = 0; s < kSteps; ++s) sum = fused(scales.v[s], dot_steps(packs, g, s, s + 1), sum);
      return sum;
    }
  }

  // Over the packs of the steps begin .. end - 1, constants all of them.
  static MDFT_DEVICE acc_t dot_steps(const Packs<scalar_t>& packs, const Gradient& g, int begin,
                                     int end) {
    acc_t sums[kSums] = {};
    MDFT_UNROLL
    for (int i = begin * kPack; i < end * kPack; ++i) {
      const acc_t delta = element(packs.v[i / kPack], i % kPack);
      sums[i % kSums] = fused(g.v[i], delta, sums[i % kSums]);
    }
    if constexpr (kSums == 2) {
      return sums[0] + sums[1];
    } else {
      return (sums[0] + sums[2]) + (sums[1] + sums[3]);
    }
  }

  static MDFT_DEVICE Lanes<Gradient> load_gradient(const Args& a, const void* grad, int64_t start,
                                                   int n) {
    return branch<acc_t>(
        a.grads_dtype, [&](auto type) { return load_as<type_of<decltype(type)>>(grad, start, n); });
  }

  template <typename grad_t>
  static MDFT_DEVICE Lanes<Gradient> load_as(const void* grad, int64_t start, int n) {
    const auto* from = static_cast<const grad_t*>(grad) + start;
    const bool wide = n == kTile && reinterpret_cast<uintptr_t>(from) % kWidestLoad == 0;
    Lanes<Gradient> g;
    each_lane([&](int lane) {
      const Packs<grad_t> packs = wide ? load_wide(from, lane) : load_some(from, lane, n);
      MDFT_UNROLL
      for (int i = 0; i < kInLane; ++i) g[lane].v[i] = widen(packs.v[i / kPack].v[i % kPack]);
    });
    return g;
  }
};

}  // namespace mdft::MDFT_TARGET
