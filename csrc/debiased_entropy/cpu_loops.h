// SPDX-License-Identifier: Apache-2.0
// The CPU loops of debiased_entropy. Compiled once for each instruction set (cpu.cpp: portable;
// cpu_avx2.cpp), in the namespace mdft::MDFT_TARGET.
//
// Two passes over rows that stay in cache: the first makes each row's numbers (entropy, soft
// cross-entropy), the second writes the gradient, once the kept rows of a task are counted.
#pragma once

#include <algorithm>
#include <limits>

#include "common/dispatch.h"
#include "common/isa/vec8.h"
#include "debiased_entropy/arguments.h"

namespace mdft {

// Classes summed in the accumulator's precision, 16 sums deep; blocks are added in double. One sum
// over a row of 1,000 classes erred four times as much as torch's.
constexpr int64_t kBlock = 128;

struct EntropyLoops {
  void (*rows)(const EntropyArgs&, int64_t begin, int64_t end);
  void (*gradient)(const EntropyArgs&, int64_t begin, int64_t end);
};

namespace MDFT_TARGET {

template <typename acc_t>
constexpr acc_t kNoLogit = -std::numeric_limits<acc_t>::infinity();

// A row read in any dtype, whole vectors at a time; past its end stands `fill`, 0 or -inf.
template <typename acc_t>
struct VectorRow {
  const void* data;
  DType dtype;
  int64_t start, C;

  Vec8<acc_t> operator()(int64_t i, acc_t fill) const {
    return branch<acc_t>(dtype, [&](auto type) { return read<type_of<decltype(type)>>(i, fill); });
  }

 private:
  template <typename scalar_t>
  Vec8<acc_t> read(int64_t i, acc_t fill) const {
    scalar_t narrow_fill;
    narrow(fill, &narrow_fill);
    return load<acc_t>(static_cast<const scalar_t*>(data) + start + i, C - i, narrow_fill);
  }
};

template <typename acc_t>
inline acc_t largest(const Vec8<acc_t>& x) {
  acc_t m = x[0];
  for (int i = 1; i < 8; ++i) m = m < x[i] ? x[i] : m;
  return m;
}

// -inf becomes the lowest finite number: times a probability of 0 it is 0, not NaN (0 log 0 = 0).
template <typename acc_t>
inline Vec8<acc_t> above_infinity(const Vec8<acc_t>& x) {
  return max(x, Vec8<acc_t>::all(std::numeric_limits<acc_t>::lowest()));
}

// shift, log_sum and entropy of softmax(row): H = log sum - sum e^y y / sum, y = row - shift.
// Returns also sum e^y x / sum for another row x less its own shift, where there is one: with it
// CE(p, q) = log_sum(q) - that, and the exponentials of p are made once.
template <bool kCross, typename acc_t>
inline double softmax_numbers(const VectorRow<acc_t>& row, double* shift, double* log_sum,
                              double* entropy, const VectorRow<acc_t>& other, double other_shift) {
  Vec8<acc_t> top = Vec8<acc_t>::all(kNoLogit<acc_t>);
  for (int64_t i = 0; i < row.C; i += 8) top = max(top, row(i, kNoLogit<acc_t>));
  const acc_t most = largest(top);
  const auto down = Vec8<acc_t>::all(-most);
  const auto other_down = Vec8<acc_t>::all(static_cast<acc_t>(-other_shift));
  double s = 0;
  double w = 0;
  double c = 0;
  for (int64_t block = 0; block < row.C; block += kBlock) {
    auto total = Vec8<acc_t>::all(0);
    auto weighted = Vec8<acc_t>::all(0);
    auto crossed = Vec8<acc_t>::all(0);
    for (int64_t i = block; i < std::min(row.C, block + kBlock); i += 8) {
      const Vec8<acc_t> y = row(i, kNoLogit<acc_t>) + down;
      const Vec8<acc_t> e = exp(y);
      total = total + e;
      weighted = fma(e, above_infinity(y), weighted);
      // A class with p = 0 adds nothing, whatever q says.
      if (kCross) crossed = fma(e, where_nonzero(e, other(i, 0) + other_down), crossed);
    }
    s += sum(total);
    w += sum(weighted);
    if (kCross) c += sum(crossed);
  }
  *shift = most;
  *log_sum = std::log(s);
  *entropy = *log_sum - w / s;
  return c / s;
}

// log q_c = z_c - shift - log_sum, subtracted in two steps: shift may be large, and what remains
// of the first difference is exact near it.
template <typename acc_t>
inline Vec8<acc_t> log_softmax(const Vec8<acc_t>& z, double shift, double log_sum) {
  return (z + Vec8<acc_t>::all(static_cast<acc_t>(-shift))) +
         Vec8<acc_t>::all(static_cast<acc_t>(-log_sum));
}

template <typename acc_t>
void entropy_rows(const EntropyArgs& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t start = a.row_offsets[r];
    const int64_t C = a.row_offsets[r + 1] - start;
    const VectorRow<acc_t> z{a.logits, a.logits_dtype, start, C};
    const VectorRow<acc_t> t{a.teacher, a.teacher_dtype, start, C};
    RowNumbers& n = a.numbers[r];
    softmax_numbers<false>(z, &n.shift, &n.log_sum, &n.entropy, z, 0);
    if (a.teacher_entropy == nullptr) {
      n.cross_entropy = n.log_sum - softmax_numbers<true>(t, &n.teacher_shift, &n.teacher_log_sum,
                                                          &n.teacher_entropy, z, n.shift);
      continue;
    }
    n.teacher_entropy = static_cast<const acc_t*>(a.teacher_entropy)[r];
    n.cross_entropy = 0;
    for (int64_t block = 0; block < C; block += kBlock) {
      auto crossed = Vec8<acc_t>::all(0);  // sum of p log q; a class with p = 0 adds nothing
      for (int64_t i = block; i < std::min(C, block + kBlock); i += 8) {
        const Vec8<acc_t> p = t(i, 0);
        const Vec8<acc_t> log_q = log_softmax(z(i, 0), n.shift, n.log_sum);
        crossed = fma(p, where_nonzero(p, log_q), crossed);
      }
      n.cross_entropy -= sum(crossed);
    }
  }
}

template <typename scalar_t, typename acc_t>
void gradient_row(const EntropyArgs& a, int64_t r) {
  const int64_t start = a.row_offsets[r];
  const int64_t C = a.row_offsets[r + 1] - start;
  auto* grad = static_cast<scalar_t*>(a.grad) + start;
  const RowNumbers& n = a.numbers[r];
  if (n.scale == 0) {  // removed: exactly 0, also where the logits are not finite
    for (int64_t i = 0; i < C; i += 8) store(Vec8<acc_t>::all(0), grad + i, C - i);
    return;
  }
  const VectorRow<acc_t> z{a.logits, a.logits_dtype, start, C};
  const VectorRow<acc_t> t{a.teacher, a.teacher_dtype, start, C};
  const auto alpha = Vec8<acc_t>::all(static_cast<acc_t>(n.scale * a.alpha));
  const auto minus_one = Vec8<acc_t>::all(-1);
  const auto entropy_scale = Vec8<acc_t>::all(static_cast<acc_t>(a.use_entropy ? -n.scale : 0.0));
  const auto entropy = Vec8<acc_t>::all(static_cast<acc_t>(n.entropy));
  for (int64_t i = 0; i < C; i += 8) {
    const Vec8<acc_t> log_q = log_softmax(z(i, kNoLogit<acc_t>), n.shift, n.log_sum);
    const Vec8<acc_t> q = exp(log_q);
    const Vec8<acc_t> p =
        a.teacher_entropy != nullptr
            ? t(i, 0)
            : exp(log_softmax(t(i, kNoLogit<acc_t>), n.teacher_shift, n.teacher_log_sum));
    const Vec8<acc_t> cross = fma(minus_one, p, q);
    const Vec8<acc_t> spread = mul(q, above_infinity(log_q) + entropy);
    store(fma(alpha, cross, mul(entropy_scale, spread)), grad + i, C - i);
  }
}

template <typename acc_t>
void gradient_rows(const EntropyArgs& a, int64_t begin, int64_t end) {
  with_float<acc_t>(a.logits_dtype, [&](auto type) {
    for (int64_t r = begin; r < end; ++r) gradient_row<type_of<decltype(type)>, acc_t>(a, r);
  });
}

inline void rows_range(const EntropyArgs& a, int64_t begin, int64_t end) {
  with_accumulator(a.logits_dtype,
                   [&](auto acc) { entropy_rows<type_of<decltype(acc)>>(a, begin, end); });
}
inline void gradient_range(const EntropyArgs& a, int64_t begin, int64_t end) {
  with_accumulator(a.logits_dtype,
                   [&](auto acc) { gradient_rows<type_of<decltype(acc)>>(a, begin, end); });
}

}  // namespace MDFT_TARGET
}  // namespace mdft
