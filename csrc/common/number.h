// SPDX-License-Identifier: Apache-2.0
// Number formats by name, free of torch, so that files built for one instruction set may include
// it without compiling torch's inline functions for that set (the linker might keep those copies).
#pragma once

#include <cstdint>
#include <stdexcept>

#if defined(__CUDACC__)
#define MDFT_HOST_DEVICE __host__ __device__
#define MDFT_DEVICE __device__ __forceinline__
#else
#define MDFT_HOST_DEVICE
#define MDFT_DEVICE inline
#endif

namespace mdft {

constexpr int64_t kTile = 1024;  // elements of an arena that share one column of lambda
constexpr int64_t kGroup = 128;  // neighboring elements of int8 and int4 that share a scale
static_assert(kTile % kGroup == 0);

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64, kInt8, kInt4 };

// For what the checks have ruled out: a mistake of ours must not pass for a result. Each file has a
// copy of its own (static), as of all code that more than one instruction set is built for.
[[noreturn]] static inline void cannot_happen(const char* what) { throw std::logic_error(what); }

// Storage only; convert.h converts.
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};
struct Int4Pair {
  uint8_t bits;  // element 2i in the low half, 2i + 1 in the high one; two's complement
};

template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// How a task vector is stored: elements in one scalar_t, and whether each is a code that its
// group's scale multiplies.
template <typename scalar_t>
struct Codec {
  static constexpr int kPerStored = 1;
  static constexpr bool kScaled = false;
};
template <>
struct Codec<int8_t> {
  static constexpr int kPerStored = 1;
  static constexpr bool kScaled = true;
};
template <>
struct Codec<Int4Pair> {
  static constexpr int kPerStored = 2;
  static constexpr bool kScaled = true;
};

}  // namespace mdft
