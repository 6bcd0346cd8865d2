// SPDX-License-Identifier: Apache-2.0
// Conversions between storage formats and accumulators, each a single rounding. Included once for
// each target (the instruction sets `portable` and `avx2`, the grids `cuda` and `emulated`), inside
// the namespace mdft::MDFT_TARGET, so that two builds of one text have different names and no code
// is shared. Kernels use the GPU's own instructions: the same bits, but for a NaN's payload.
#pragma once

#ifndef MDFT_TARGET
#error "define MDFT_TARGET (the namespace of what this is built for) before including convert.h"
#endif

#include <cstdint>
#include <cstring>

#include "common/number.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mdft::MDFT_TARGET {

template <typename to_t, typename from_t>
MDFT_HOST_DEVICE inline to_t bit_cast(from_t value) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

MDFT_HOST_DEVICE inline float widen(float x) { return x; }
MDFT_HOST_DEVICE inline double widen(double x) { return x; }
MDFT_HOST_DEVICE inline float widen(BFloat16Bits x) {
  return bit_cast<float>(uint32_t{x.bits} << 16);
}
MDFT_HOST_DEVICE inline float widen(Float16Bits x) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x.bits));
#else
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // 2^112 shifts the exponent's bias from 15 to 127, and makes subnormal halves normal floats.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
#endif
}
MDFT_HOST_DEVICE inline float widen(int8_t x) { return static_cast<float>(x); }
// Half 0 or 1 of a pair.
MDFT_HOST_DEVICE inline float widen(Int4Pair x, int half) {
  return static_cast<float>(static_cast<int8_t>(half ? x.bits : x.bits << 4) >> 4);
}

MDFT_HOST_DEVICE inline void narrow(float x, float* p) { *p = x; }
MDFT_HOST_DEVICE inline void narrow(double x, double* p) { *p = x; }
MDFT_HOST_DEVICE inline void narrow(float x, BFloat16Bits* p) {  // to nearest, ties to even
#if defined(__CUDA_ARCH__)
  p->bits = bit_cast<uint16_t>(__float2bfloat16_rn(x));
#else
  const auto bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
#endif
}
MDFT_HOST_DEVICE inline void narrow(float x, Float16Bits* p) {  // to nearest, ties to even
#if defined(__CUDA_ARCH__)
  p->bits = bit_cast<uint16_t>(__float2half_rn(x));
#else
  const auto bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or beyond
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the float adder does the rounding
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace mdft::MDFT_TARGET
