// SPDX-License-Identifier: Apache-2.0
// merge and merge_dots on the CPU. Memory bound:
//   merge       reads base and K rows of deltas once, writes out once, past the cache where out is
//               given and larger than it (an ordinary store reads each line before it writes it; of
//               a fresh page, which the system has just cleared, the lines are in cache)
//   merge_dots  reads each gradient and K rows of deltas once
// Rows of codes bring 4 bytes of scale a group: 3 % of int8, 6 % of int4.
#define MDFT_ISA portable
#include "merge/merge_loops.h"
#undef MDFT_ISA

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cpu.h"
#include "merge/merge.h"

namespace mdft {

MergeLoops merge_loops_avx2();  // merge_avx2.cpp

namespace {

constexpr int64_t kGrain = 8;  // tiles; smallest share of work worth a thread

// An output larger than this goes past the cache: most of a last-level cache is gone by then, and
// the reader fetches from memory anyway.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

const MergeLoops& loops() {
  static const MergeLoops chosen =
      has_avx2() ? merge_loops_avx2()
                 : MergeLoops{portable::merge_range, portable::merge_dots_range};
  return chosen;
}

const float* pointer_to(const std::optional<Tensor>& scales) {
  return scales ? scales->const_data_ptr<float>() : nullptr;
}

void run_merge(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
               const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
               const Tensor& out, bool fresh) {
  void* target = out.mutable_data_ptr();
  const bool aligned = reinterpret_cast<uintptr_t>(target) % 32 == 0;
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  const MergeArgs args{base.const_data_ptr(),
                       deltas.const_data_ptr(),
                       pointer_to(scales),
                       coefficients.const_data_ptr(),
                       columns.const_data_ptr<int32_t>(),
                       target,
                       dtype_of(base.scalar_type()),
                       dtype_of(deltas.scalar_type()),
                       dtype_of(out.scalar_type()),
                       deltas.size(0),
                       coefficients.size(1),
                       base.size(0),
                       first,
                       aligned && !fresh && bytes > kStreamBytes};
  // A column outside of lambda would read past its end: the one check that costs a pass, over
  // 1/1024 of the data.
  for (int64_t t = 0; t < last - first; ++t) {
    STD_TORCH_CHECK(0 <= args.columns[t] && args.columns[t] < args.L,
                    "merge: columns must lie in [0, ", args.L, "), got ", args.columns[t]);
  }
  torch::stable::parallel_for(0, last - first, kGrain,
                              [&](int64_t begin, int64_t end) { loops().merge(args, begin, end); });
}

void merge_out_cpu(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                   const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                   const Tensor& out) {
  check_merge_args(base, deltas, scales, coefficients, columns, first, last, out.scalar_type());
  check_merge_out(base, deltas, scales, coefficients, out, first, last);
  run_merge(base, deltas, scales, coefficients, columns, first, last, out, /*fresh=*/false);
}

Tensor merge_cpu(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                 const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                 ScalarType out_dtype) {
  check_merge_args(base, deltas, scales, coefficients, columns, first, last, out_dtype);
  Tensor out = torch::stable::new_empty(base, {elements_of(first, last, base.size(0))}, out_dtype);
  run_merge(base, deltas, scales, coefficients, columns, first, last, out, /*fresh=*/true);
  return out;
}

// Adds the dot products of each column's tiles, in order, in float64.
template <typename acc_t>
void add_columns(const acc_t* partials, const int32_t* order, const int32_t* starts, int64_t K,
                 int64_t L, int64_t tiles, acc_t* dots) {
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t l = 0; l < L; ++l) {
      double sum = 0;
      for (int32_t i = starts[l]; i < starts[l + 1]; ++i) sum += partials[k * tiles + order[i]];
      dots[k * L + l] = static_cast<acc_t>(sum);
    }
  }
}

Tensor merge_dots_cpu(const std::vector<std::optional<Tensor>>& grads, const Tensor& deltas,
                      const std::optional<Tensor>& scales, const Tensor& order,
                      const Tensor& starts, const Tensor& tensor_tiles, int64_t first,
                      int64_t last) {
  const Gradients present =
      check_merge_dots_args(grads, deltas, scales, order, starts, tensor_tiles, first, last);
  const ScalarType acc = accumulator(deltas.scalar_type());
  const int64_t K = deltas.size(0);
  const int64_t L = starts.size(0) - 1;
  const int64_t tiles = last - first;
  const int32_t* order_ptr = order.const_data_ptr<int32_t>();
  const int32_t* starts_ptr = starts.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < tiles; ++i) {
    STD_TORCH_CHECK(0 <= order_ptr[i] && order_ptr[i] < tiles, "merge_dots: order must lie in [0, ",
                    tiles, "), got ", order_ptr[i]);
  }
  for (int64_t l = 0; l < L; ++l) {
    STD_TORCH_CHECK(
        0 <= starts_ptr[l] && starts_ptr[l] <= starts_ptr[l + 1] && starts_ptr[l + 1] <= tiles,
        "merge_dots: starts must rise within [0, ", tiles, "], got ", starts_ptr[l], " before ",
        starts_ptr[l + 1]);
  }
  Tensor dots = torch::stable::new_empty(deltas, {K, L}, acc);
  Tensor partials = torch::stable::new_empty(deltas, {K, tiles}, acc);
  const MergeDotsArgs args{present.pointers.data(),
                           present.sizes.data(),
                           tensor_tiles.const_data_ptr<int64_t>(),
                           deltas.const_data_ptr(),
                           pointer_to(scales),
                           partials.mutable_data_ptr(),
                           dtype_of(present.type),
                           dtype_of(deltas.scalar_type()),
                           static_cast<int64_t>(grads.size()),
                           tiles,
                           K,
                           deltas.size(1) * per_stored(deltas),
                           first};
  torch::stable::parallel_for(
      0, tiles, kGrain, [&](int64_t begin, int64_t end) { loops().merge_dots(args, begin, end); });
  if (acc == ScalarType::Double) {
    add_columns(partials.const_data_ptr<double>(), order_ptr, starts_ptr, K, L, tiles,
                dots.mutable_data_ptr<double>());
  } else {
    add_columns(partials.const_data_ptr<float>(), order_ptr, starts_ptr, K, L, tiles,
                dots.mutable_data_ptr<float>());
  }
  return dots;
}

}  // namespace
}  // namespace mdft

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CPU, m) {
  m.impl("merge", TORCH_BOX(&mdft::merge_cpu));
  m.impl("merge_out", TORCH_BOX(&mdft::merge_out_cpu));
  m.impl("merge_dots", TORCH_BOX(&mdft::merge_dots_cpu));
}
