// SPDX-License-Identifier: Apache-2.0
// A row of task vectors as the CPU loops see it, in any codec: something that points to elements.
// Included once for each instruction set, as vec8.h.
#pragma once

#include "common/dispatch.h"
#include "common/isa/vec8.h"

namespace mdft::MDFT_TARGET {

template <typename row_t>
struct PointedTo {
  using type = std::remove_const_t<std::remove_pointer_t<row_t>>;
};
template <>
struct PointedTo<Int4Pointer> {
  using type = Int4Pair;
};
template <typename row_t>
using stored_t = typename PointedTo<row_t>::type;

// Whether a group's scale multiplies the elements: `load` gives codes then.
template <typename row_t>
constexpr bool kScaled = Codec<stored_t<row_t>>::kScaled;

// What points to the first element of task vectors of scalar_t.
template <typename scalar_t>
inline auto first_element(const void* deltas) {
  const auto* stored = static_cast<const scalar_t*>(deltas);
  if constexpr (std::is_same_v<scalar_t, Int4Pair>) {
    return Int4Pointer{stored};
  } else {
    return stored;
  }
}

// Asks for n elements to come into L2, wherever they lie: beyond a row nothing happens.
template <typename scalar_t>
inline void fetch(const scalar_t* p, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(p + i, 0, 2);
}
inline void fetch(Int4Pointer p, int64_t n) { fetch(p.pairs, n / 2); }

// Calls f(rows, k) for the rows k .. k + rows - 1 until all K are done; `rows` is a constant: kMost
// as often as it fits, then its halves.
template <int kMost, typename F>
inline void in_chunks(int64_t K, F f) {
  int64_t k = 0;
  for (; k + kMost <= K; k += kMost) f(std::integral_constant<int, kMost>{}, k);
  if constexpr (kMost > 1) {
    in_chunks<kMost / 2>(K - k, [&](auto rows, int64_t more) { f(rows, k + more); });
  }
}

}  // namespace mdft::MDFT_TARGET
