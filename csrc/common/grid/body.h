// SPDX-License-Identifier: Apache-2.0
// What a kernel's body is written in, so that one text runs on a GPU and, in tests, over an
// emulated grid on the CPU. MDFT_TARGET is `cuda` or `emulated`.
//
//   block.each_thread(f)   f(thread) in every thread of the block
//   block.each_warp(f)     f(warp) in every warp of the block
//   block.phase(f)         the same, then all threads of the block meet
//   each_lane(f)           f(lane) in every lane of the warp
//   Lanes<T> x             a T in every lane, x[lane]: registers on the device, an array here
//   warp_sum(x)            the sum over the lanes, in a fixed tree five additions deep
//   from_lane(x, lane)     x of one lane, in all
//   from_beyond(x, n)      in each lane x of the lane n further on; in the last n their own
//
// Code between these runs once a warp with the same numbers in all lanes. The emulation runs
// blocks, warps and threads last to first, one after another: within a phase none may need
// another, and what a phase reads of other warps must come from an earlier one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/convert.h"
#include "common/dispatch.h"

#if defined(__CUDACC__)
#define MDFT_UNROLL _Pragma("unroll")
#else
#define MDFT_UNROLL
#endif

namespace mdft::MDFT_TARGET {

constexpr int kWarp = 32;        // lanes
constexpr int kWidestLoad = 16;  // bytes that one thread's load or store can move

// For launchers: whether kernels may read and write there as widely as they can.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kWidestLoad == 0; }

template <typename T>
struct Lanes {
#if defined(__CUDACC__)
  T value;
  MDFT_DEVICE T& operator[](int) { return value; }
  MDFT_DEVICE const T& operator[](int) const { return value; }
#else
  T value[kWarp];
  T& operator[](int lane) { return value[lane]; }
  const T& operator[](int lane) const { return value[lane]; }
#endif
};

template <typename F>
MDFT_DEVICE void each_lane(F f) {
#if defined(__CUDACC__)
  f(static_cast<int>(threadIdx.x % kWarp));
#else
  for (int lane = kWarp - 1; lane >= 0; --lane) f(lane);
#endif
}

// combine(own, other) with the lane at distance 16, 8, 4, 2, 1. As combine is commutative, every
// lane ends with the same bits.
template <typename T, typename F>
MDFT_DEVICE T warp_reduce(Lanes<T> x, F combine) {
#if defined(__CUDACC__)
  MDFT_UNROLL
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x.value = combine(x.value, __shfl_xor_sync(0xffffffffu, x.value, distance));
  }
  return x.value;
#else
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Lanes<T> before = x;
    for (int lane = 0; lane < kWarp; ++lane) {
      x[lane] = combine(before[lane], before[lane ^ distance]);
    }
  }
  return x[0];
#endif
}

template <typename T>
MDFT_DEVICE T warp_sum(const Lanes<T>& x) {
  return warp_reduce(x, [](T a, T b) { return a + b; });
}
template <typename T>
MDFT_DEVICE T warp_max(const Lanes<T>& x) {
  return warp_reduce(x, [](T a, T b) { return a < b ? b : a; });
}

template <typename T>
MDFT_DEVICE T from_lane(const Lanes<T>& x, int lane) {
#if defined(__CUDACC__)
  return __shfl_sync(0xffffffffu, x.value, lane);
#else
  return x[lane];
#endif
}

template <typename T>
MDFT_DEVICE Lanes<T> from_beyond(const Lanes<T>& x, int distance) {
  Lanes<T> result;
#if defined(__CUDACC__)
  result.value = __shfl_down_sync(0xffffffffu, x.value, distance);
#else
  for (int lane = 0; lane < kWarp; ++lane) {
    result[lane] = x[lane + distance < kWarp ? lane + distance : lane];
  }
#endif
  return result;
}

template <int kThreads>
struct Block {
  static_assert(kThreads % kWarp == 0);
  static constexpr int kWarps = kThreads / kWarp;
  int64_t index;

  template <typename F>
  MDFT_DEVICE void each_thread(F f) const {
#if defined(__CUDACC__)
    f(static_cast<int>(threadIdx.x));
#else
    for (int thread = kThreads - 1; thread >= 0; --thread) f(thread);
#endif
  }

  template <typename F>
  MDFT_DEVICE void each_warp(F f) const {
#if defined(__CUDACC__)
    f(static_cast<int>(threadIdx.x / kWarp));
#else
    for (int warp = kWarps - 1; warp >= 0; --warp) f(warp);
#endif
  }

  template <typename F>
  MDFT_DEVICE void phase(F f) const {
    each_warp(f);
#if defined(__CUDACC__)
    __syncthreads();
#endif
  }
};

// Neighbouring elements that a thread reads or writes at once.
template <typename scalar_t, int kSize>
struct alignas(sizeof(scalar_t) * kSize) Pack {
  scalar_t v[kSize];
};

// The same of a task vector, and its e-th element: a code where a scale multiplies it.
template <typename scalar_t, int kElements>
using CodecPack = Pack<scalar_t, kElements / Codec<scalar_t>::kPerStored>;
template <typename scalar_t, int kSize>
MDFT_DEVICE auto element(const Pack<scalar_t, kSize>& pack, int e) {
  if constexpr (Codec<scalar_t>::kPerStored == 2) {
    return widen(pack.v[e / 2], e % 2);
  } else {
    return widen(pack.v[e]);
  }
}

template <typename pack_t>
constexpr bool kWide = sizeof(pack_t) % kWidestLoad == 0;

#if !defined(__CUDACC__)
// On a GPU such an access ends the program.
template <typename pack_t>
void check_alignment(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % (kWide<pack_t> ? kWidestLoad : sizeof(pack_t)) != 0) {
    throw std::logic_error("an access to an address that is not aligned");
  }
}
#endif

// Reads bytes that are used once: they are the first to leave the caches.
template <typename pack_t>
MDFT_DEVICE pack_t stream_load(const void* from) {
  pack_t pack;
#if defined(__CUDACC__)
  if constexpr (kWide<pack_t>) {
    MDFT_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(pack_t)) / kWidestLoad; ++i) {
      const uint4 words = __ldcs(static_cast<const uint4*>(from) + i);
      std::memcpy(reinterpret_cast<char*>(&pack) + i * kWidestLoad, &words, sizeof(words));
    }
  } else if constexpr (sizeof(pack_t) == sizeof(uint2)) {
    const uint2 words = __ldcs(static_cast<const uint2*>(from));
    std::memcpy(&pack, &words, sizeof(words));
  } else {
    pack = *static_cast<const pack_t*>(from);
  }
#else
  check_alignment<pack_t>(from);
  std::memcpy(&pack, from, sizeof(pack_t));
#endif
  return pack;
}

template <typename pack_t>
MDFT_DEVICE void store(void* to, const pack_t& pack) {
#if defined(__CUDACC__)
  if constexpr (kWide<pack_t>) {
    MDFT_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(pack_t)) / kWidestLoad; ++i) {
      uint4 words;
      std::memcpy(&words, reinterpret_cast<const char*>(&pack) + i * kWidestLoad, sizeof(words));
      static_cast<uint4*>(to)[i] = words;
    }
  } else {
    *static_cast<pack_t*>(to) = pack;
  }
#else
  check_alignment<pack_t>(to);
  std::memcpy(to, &pack, sizeof(pack_t));
#endif
}

// Loads above are issued before loads below. The assembler otherwise mixes them, and one that waits
// for an address then holds up those that need not. Costs an empty instruction.
MDFT_DEVICE void issue_fence() {
#if defined(__CUDACC__)
  __syncwarp(__activemask());
#endif
}

// a * b + c, rounded once.
MDFT_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
MDFT_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

template <typename acc_t>
constexpr acc_t kNaN = std::numeric_limits<acc_t>::quiet_NaN();

}  // namespace mdft::MDFT_TARGET
