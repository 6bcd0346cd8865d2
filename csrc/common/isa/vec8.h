// SPDX-License-Identifier: Apache-2.0
// Eight numbers at a time, on the CPU. Included once for each instruction set, as common/convert.h.
//
//   Vec8<float>   one AVX2 register where __AVX2__ is set, else an array that any compiler unrolls
//   Vec8<double>  an array of eight; float64 serves gradcheck, not speed
//
// load(p, n) and store(p, n) touch the first n <= 8 elements only; the rest reads as `fill`.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/convert.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mdft::MDFT_TARGET {

// A place in a row of int4, an even number of elements from its start.
struct Int4Pointer {
  const Int4Pair* pairs;
  Int4Pointer operator+(int64_t elements) const { return {pairs + elements / 2}; }
};

template <typename acc_t>
struct Vec8 {
  acc_t v[8];

  static Vec8 all(acc_t x) {
    Vec8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = x;
    return r;
  }
  static Vec8 gather(const acc_t* p, const int32_t* index) {
    Vec8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = p[index[i]];
    return r;
  }
  template <typename scalar_t>
  static Vec8 load(const scalar_t* p) {
    Vec8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = widen(p[i]);
    return r;
  }
  static Vec8 load(Int4Pointer p) {
    Vec8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = widen(p.pairs[i / 2], i % 2);
    return r;
  }
  template <typename scalar_t>
  void store(scalar_t* p) const {
    for (int i = 0; i < 8; ++i) narrow(v[i], p + i);
  }
  template <typename scalar_t>
  void stream(scalar_t* p) const {
    store(p);
  }
  acc_t operator[](int i) const { return v[i]; }
};

// a * b + c
template <typename acc_t>
inline Vec8<acc_t> fma(const Vec8<acc_t>& a, const Vec8<acc_t>& b, const Vec8<acc_t>& c) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
  return r;
}
template <typename acc_t>
inline Vec8<acc_t> operator+(const Vec8<acc_t>& a, const Vec8<acc_t>& b) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] + b.v[i];
  return r;
}
template <typename acc_t>
inline Vec8<acc_t> mul(const Vec8<acc_t>& a, const Vec8<acc_t>& b) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] * b.v[i];
  return r;
}
// x where p is not 0, else 0: the term p * log q of a class that the teacher rules out.
template <typename acc_t>
inline Vec8<acc_t> where_nonzero(const Vec8<acc_t>& p, const Vec8<acc_t>& x) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = p.v[i] == 0 ? 0 : x.v[i];
  return r;
}
template <typename acc_t>
inline Vec8<acc_t> max(const Vec8<acc_t>& a, const Vec8<acc_t>& b) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] < b.v[i] ? b.v[i] : a.v[i];
  return r;
}
template <typename acc_t>
inline Vec8<acc_t> exp(const Vec8<acc_t>& x) {
  Vec8<acc_t> r;
  for (int i = 0; i < 8; ++i) r.v[i] = std::exp(x.v[i]);
  return r;
}

#if defined(__AVX2__)
template <>
struct Vec8<float> {
  __m256 v;

  static Vec8 all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec8 gather(const float* p, const int32_t* index) {  // the instruction is no faster
    return {_mm256_setr_ps(p[index[0]], p[index[1]], p[index[2]], p[index[3]], p[index[4]],
                           p[index[5]], p[index[6]], p[index[7]])};
  }
  static Vec8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec8 load(const BFloat16Bits* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
  }
  static Vec8 load(const Float16Bits* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec8 load(const int8_t* p) {
    const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw))};
  }
  static Vec8 load(Int4Pointer p) {  // each lane moves its half to the top, then down with its sign
    int32_t halves;
    std::memcpy(&halves, p.pairs, sizeof(halves));
    const __m256i to_top = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i top = _mm256_sllv_epi32(_mm256_set1_epi32(halves), to_top);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28))};
  }

  __m128i to(const BFloat16Bits*) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_packus_epi32(chosen, chosen);  // within each half
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8));
  }
  __m128i to(const Float16Bits*) const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  template <typename scalar_t>
  void store(scalar_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to(p));
  }
  // Past the cache, straight to memory; p must be aligned to the store's own width.
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  template <typename scalar_t>
  void stream(scalar_t* p) const {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), to(p));
  }
  float operator[](int i) const {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, v);
    return lanes[i];
  }
};

template <>
inline Vec8<float> fma(const Vec8<float>& a, const Vec8<float>& b, const Vec8<float>& c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
template <>
inline Vec8<float> operator+(const Vec8<float>& a, const Vec8<float>& b) {
  return {_mm256_add_ps(a.v, b.v)};
}
template <>
inline Vec8<float> mul(const Vec8<float>& a, const Vec8<float>& b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
template <>
inline Vec8<float> where_nonzero(const Vec8<float>& p, const Vec8<float>& x) {
  return {_mm256_and_ps(x.v, _mm256_cmp_ps(p.v, _mm256_setzero_ps(), _CMP_NEQ_UQ))};
}
template <>
inline Vec8<float> max(const Vec8<float>& a, const Vec8<float>& b) {
  // maxps returns its second operand when either is NaN: keeps a NaN of b, as the portable form.
  return {_mm256_max_ps(a.v, b.v)};
}
// exp by Cody and Waite's reduction, x = n log 2 + r, and a degree-6 minimax polynomial in r;
// within 2 units in the last place. Below -87.33 the result would be subnormal: it is 0, and so
// exp(-inf) = 0. NaN stays NaN. Arguments here are <= 88 (logits less their maximum, H0 - H).
template <>
inline Vec8<float> exp(const Vec8<float>& a) {
  const __m256 x = a.v;
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
  const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.33f), _CMP_LT_OQ);
  return {_mm256_blendv_ps(_mm256_andnot_ps(tiny, p), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q))};
}
#endif

#if defined(__AVX2__)
// All ones in the first n of eight lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}
#endif

template <typename acc_t, typename scalar_t>
inline Vec8<acc_t> load(const scalar_t* p, int64_t n, scalar_t fill) {
  if (n >= 8) return Vec8<acc_t>::load(p);
#if defined(__AVX2__)
  if constexpr (std::is_same_v<scalar_t, float>) {
    const __m256i mask = first_lanes(n);
    return {_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask),
                             _mm256_castsi256_ps(mask))};
  }
#endif
  scalar_t lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = i < n ? p[i] : fill;
  return Vec8<acc_t>::load(lanes);
}

template <typename acc_t, typename scalar_t>
inline void store(const Vec8<acc_t>& x, scalar_t* p, int64_t n) {
  if (n >= 8) return x.store(p);
#if defined(__AVX2__)
  if constexpr (std::is_same_v<scalar_t, float>) {
    return _mm256_maskstore_ps(p, first_lanes(n), x.v);
  }
#endif
  scalar_t lanes[8];
  x.store(lanes);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

// Sum of the eight in a fixed tree, three levels deep.
template <typename acc_t>
inline acc_t sum(const Vec8<acc_t>& x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
#if defined(__AVX2__)
template <>
inline float sum(const Vec8<float>& x) {  // the same tree
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#endif

}  // namespace mdft::MDFT_TARGET
