// SPDX-License-Identifier: Apache-2.0
// From a dtype that is known when the program runs to the type that stores it, for loops, launchers
// and kernels alike. Included once for each target, inside the namespace mdft::MDFT_TARGET, as
// convert.h.
//
// Each calls f with Type<T>{} of one type T:
//
// - with_accumulator(dtype, f): double where sums are kept in float64, else float.
// - with_stored<acc_t>(dtype, f): the one of six types; its sums must be kept in acc_t.
// - with_float<acc_t>(dtype, f): the same of the four floats.
// - branch<acc_t>(dtype, f): the same in a kernel or a loop, where the launcher has checked dtype;
//   returns what f returns.
#pragma once

#ifndef MDFT_TARGET
#error "define MDFT_TARGET (the namespace of what this is built for) before including dispatch.h"
#endif

#include <type_traits>

#include "common/number.h"

// Into the loops that call them: out of line, sums that live in the caller's array might be
// anyone's to the compiler, and merge was a seventh slower. A launcher does not care.
#if defined(__CUDACC__)
#define MDFT_INLINE inline
#else
#define MDFT_INLINE [[gnu::always_inline]] inline
#endif

namespace mdft::MDFT_TARGET {

template <typename T>
struct Type {
  using type = T;
};
template <typename tag_t>
using type_of = typename tag_t::type;

template <typename F>
inline void with_accumulator(DType dtype, F f) {
  dtype == DType::kFloat64 ? f(Type<double>{}) : f(Type<float>{});
}

template <typename acc_t, typename scalar_t, typename F>
MDFT_INLINE void if_sums_in(F f) {
  if constexpr (std::is_same_v<typename Accumulate<scalar_t>::type, acc_t>) {
    f(Type<scalar_t>{});
  } else {
    cannot_happen("a dtype whose sums are kept in another one");
  }
}

template <typename acc_t, typename F>
MDFT_INLINE void with_stored(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return if_sums_in<acc_t, float>(f);
    case DType::kBFloat16:
      return if_sums_in<acc_t, BFloat16Bits>(f);
    case DType::kFloat16:
      return if_sums_in<acc_t, Float16Bits>(f);
    case DType::kFloat64:
      return if_sums_in<acc_t, double>(f);
    case DType::kInt8:
      return if_sums_in<acc_t, int8_t>(f);
    case DType::kInt4:
      return if_sums_in<acc_t, Int4Pair>(f);
  }
  cannot_happen("a dtype that is none of the six");
}

template <typename acc_t, typename F>
MDFT_INLINE void with_float(DType dtype, F f) {
  with_stored<acc_t>(dtype, [&](auto type) {
    if constexpr (Codec<type_of<decltype(type)>>::kScaled) {
      cannot_happen("codes where floats must be");
    } else {
      f(type);
    }
  });
}

template <typename acc_t, typename F>
MDFT_DEVICE auto branch(DType dtype, F f) {
  if constexpr (std::is_same_v<acc_t, double>) {
    return f(Type<double>{});
  } else if (dtype == DType::kFloat32) {
    return f(Type<float>{});
  } else if (dtype == DType::kBFloat16) {
    return f(Type<BFloat16Bits>{});
  } else {
    return f(Type<Float16Bits>{});
  }
}

}  // namespace mdft::MDFT_TARGET
