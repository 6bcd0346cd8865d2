// SPDX-License-Identifier: Apache-2.0
// Number formats by name, free of torch, so that files built for one instruction set may include
// it without compiling torch's inline functions for that set (the linker might keep those copies).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MDFT_HOST_DEVICE __host__ __device__
#else
#define MDFT_HOST_DEVICE
#endif

namespace mdft {

constexpr int64_t kTile = 1024;  // elements of an arena that share one column of lambda

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Storage only; vec8.h converts.
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

}  // namespace mdft
