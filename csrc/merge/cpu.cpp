// SPDX-License-Identifier: Apache-2.0
// merge on the CPU. Memory bound: reads base and K rows of deltas once, writes out once, past the
// cache where out is given and larger than it (an ordinary store reads each line before it writes
// it; of a fresh page, which the system has just cleared, the lines are in cache). Rows of codes
// bring 4 bytes of scale a group: 3 % of int8, 6 % of int4.
#define MDFT_TARGET portable
#include "merge/cpu_loops.h"
#undef MDFT_TARGET

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/isa/features.h"
#include "merge/merge.h"

namespace mdft {

MergeLoop merge_loop_avx2();  // cpu_avx2.cpp

namespace {

constexpr int64_t kGrain = 8;  // tiles; smallest share of work worth a thread

// An output larger than this goes past the cache: most of a last-level cache is gone by then, and
// the reader fetches from memory anyway.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

MergeLoop loop() {
  static const MergeLoop chosen = has_avx2() ? merge_loop_avx2() : portable::merge_range;
  return chosen;
}

void run_merge(const MergeArgs& args, int64_t tiles, const Tensor& out, bool fresh) {
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % 32 == 0;
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  const bool stream = aligned && !fresh && bytes > kStreamBytes;
  // A column outside of lambda would read past its end: the one check that costs a pass, over
  // 1/1024 of the data.
  for (int64_t t = 0; t < tiles; ++t) {
    STD_TORCH_CHECK(0 <= args.columns[t] && args.columns[t] < args.L,
                    "merge: columns must lie in [0, ", args.L, "), got ", args.columns[t]);
  }
  if (args.rows) check_row_values("merge", args.rows, tiles);
  torch::stable::parallel_for(
      0, tiles, kGrain, [&](int64_t begin, int64_t end) { loop()(args, stream, begin, end); });
}

void merge_out_cpu(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                   const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                   const Tensor& out, const std::optional<Tensor>& rows) {
  check_merge_args(base, deltas, scales, coefficients, columns, rows, first, last,
                   out.scalar_type());
  check_merge_out(base, deltas, scales, coefficients, out, first, last);
  run_merge(merge_args(base, deltas, scales, coefficients, columns, rows, first, out), last - first,
            out,
            /*fresh=*/false);
}

Tensor merge_cpu(const Tensor& base, const Tensor& deltas, const std::optional<Tensor>& scales,
                 const Tensor& coefficients, const Tensor& columns, int64_t first, int64_t last,
                 ScalarType out_dtype, const std::optional<Tensor>& rows) {
  check_merge_args(base, deltas, scales, coefficients, columns, rows, first, last, out_dtype);
  Tensor out = torch::stable::new_empty(base, {elements_of(first, last, base.size(0))}, out_dtype);
  run_merge(merge_args(base, deltas, scales, coefficients, columns, rows, first, out), last - first,
            out,
            /*fresh=*/true);
  return out;
}

}  // namespace
}  // namespace mdft

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CPU, m) {
  m.impl("merge", TORCH_BOX(&mdft::merge_cpu));
  m.impl("merge_out", TORCH_BOX(&mdft::merge_out_cpu));
}
