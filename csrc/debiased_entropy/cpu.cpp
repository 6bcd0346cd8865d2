// SPDX-License-Identifier: Apache-2.0
// debiased_entropy on the CPU: 2 M values read, M written; the second pass finds them in cache.
// At a step's size (8 tasks x 16 rows, some 6,000 logits) the time is the exponentials'.
#define MDFT_TARGET portable
#include "debiased_entropy/cpu_loops.h"
#undef MDFT_TARGET

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/isa/features.h"
#include "debiased_entropy/debiased_entropy.h"

namespace mdft {

EntropyLoops entropy_loops_avx2();  // cpu_avx2.cpp

namespace {

constexpr int64_t kGrainElements = 16384;  // logits; fewer are done before a thread wakes up

const EntropyLoops& loops() {
  static const EntropyLoops chosen =
      has_avx2() ? entropy_loops_avx2()
                 : EntropyLoops{portable::rows_range, portable::gradient_range};
  return chosen;
}

// Index tensors come from outside: a wrong one would read past the end.
void check_offsets(const char* what, const int64_t* offsets, int64_t n, int64_t end) {
  STD_TORCH_CHECK(offsets[0] == 0 && offsets[n] == end, "debiased_entropy: ", what,
                  " must run from 0 to ", end, ", got ", offsets[0], " to ", offsets[n]);
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(offsets[i] <= offsets[i + 1], "debiased_entropy: ", what,
                    " must not decrease, got ", offsets[i], " before ", offsets[i + 1]);
  }
}

// Rows a thread takes at once, so that it takes at least kGrainElements logits.
int64_t row_grain(int64_t R, int64_t M) {
  return M == 0 ? R + 1 : std::max<int64_t>(1, R * kGrainElements / M);
}

// Filter, weight and loss of one task (equations 4 to 6), rows in order.
template <typename acc_t>
void reduce_task(const EntropyArgs& a, int64_t task) {
  const int64_t begin = a.task_rows[task];
  const int64_t end = a.task_rows[task + 1];
  auto* entropy = static_cast<acc_t*>(a.entropy);
  int64_t kept = 0;
  int64_t C = -1;
  acc_t H0 = 0;
  double weights = 0;
  for (int64_t r = begin; r < end; ++r) {
    RowNumbers& n = a.numbers[r];
    if (C != a.row_offsets[r + 1] - a.row_offsets[r]) {  // else as in the row before
      C = a.row_offsets[r + 1] - a.row_offsets[r];
      H0 = static_cast<acc_t>(a.mu * std::log(static_cast<double>(C)));
    }
    const auto H = static_cast<acc_t>(a.entropy_of_meta ? n.entropy : n.teacher_entropy);
    const bool keep = !a.filter || !(H >= H0);  // (4); a NaN is kept, and its weight is NaN
    const bool one = !a.reweight && (!a.filter || H < H0);
    n.scale = !keep ? 0 : one ? 1 : std::exp(H0 - H);  // (5)
    entropy[r] = H;
    a.kept[r] = keep;
    kept += keep;
    weights += n.scale;
  }
  const double mean = a.normalize && kept > 0 ? weights / kept : 1;
  const double divisor = a.divide_by ? static_cast<const acc_t*>(a.divide_by)[task] : kept;
  double total = 0;
  for (int64_t r = begin; r < end; ++r) {
    RowNumbers& n = a.numbers[r];
    auto* weight = static_cast<acc_t*>(a.weight) + r;
    *weight = a.kept[r] ? static_cast<acc_t>(n.scale / mean) : 0;  // the mean may be NaN
    if (!a.kept[r]) continue;  // masked, not multiplied: a removed row may hold anything
    n.scale = n.scale / mean / divisor;
    total += n.scale * (a.alpha * n.cross_entropy + (a.use_entropy ? n.entropy : 0));
  }
  static_cast<acc_t*>(a.loss)[task] = static_cast<acc_t>(total);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> debiased_entropy_cpu(
    const Tensor& logits, const Tensor& teacher, const std::optional<Tensor>& teacher_entropy,
    const Tensor& row_offsets, const Tensor& task_rows, double alpha, double mu, bool use_entropy,
    bool filter, int64_t reweight, bool entropy_of_meta, const std::optional<Tensor>& divide_by) {
  check_debiased_entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu,
                              reweight, divide_by);
  const int64_t M = logits.size(0);
  const int64_t R = row_offsets.size(0) - 1;
  const int64_t K = task_rows.size(0) - 1;
  check_offsets("row_offsets", row_offsets.const_data_ptr<int64_t>(), R, M);
  check_offsets("task_rows", task_rows.const_data_ptr<int64_t>(), K, R);
  const EntropyResults out = new_results(logits, R, K);
  std::vector<RowNumbers> numbers(R);
  const EntropyArgs args =
      entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu, use_entropy,
                   filter, reweight, entropy_of_meta, divide_by, out, numbers.data());
  const int64_t grain = row_grain(R, M);
  torch::stable::parallel_for(0, R, grain,
                              [&](int64_t begin, int64_t end) { loops().rows(args, begin, end); });
  portable::with_accumulator(args.logits_dtype, [&](auto acc) {
    for (int64_t k = 0; k < K; ++k) reduce_task<portable::type_of<decltype(acc)>>(args, k);
  });
  torch::stable::parallel_for(
      0, R, grain, [&](int64_t begin, int64_t end) { loops().gradient(args, begin, end); });
  return {out.loss, out.entropy, out.weight, out.kept, out.grad};
}

Tensor debiased_entropy_backward_cpu(const Tensor& grad, const Tensor& row_offsets,
                                     const Tensor& task_rows, const Tensor& grad_loss) {
  check_debiased_entropy_backward_args(grad, row_offsets, task_rows, grad_loss);
  const int64_t* offsets = row_offsets.const_data_ptr<int64_t>();
  const int64_t* tasks = task_rows.const_data_ptr<int64_t>();
  const int64_t K = task_rows.size(0) - 1;
  check_offsets("row_offsets", offsets, row_offsets.size(0) - 1, grad.size(0));
  check_offsets("task_rows", tasks, K, row_offsets.size(0) - 1);
  Tensor out = torch::stable::empty_like(grad);
  const auto scale_tasks = [&](auto type) {
    using scalar_t = portable::type_of<decltype(type)>;
    using acc_t = typename Accumulate<scalar_t>::type;
    const auto* from = static_cast<const scalar_t*>(grad.const_data_ptr());
    const auto* by = static_cast<const acc_t*>(grad_loss.const_data_ptr());
    auto* to = static_cast<scalar_t*>(out.mutable_data_ptr());
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t m = offsets[tasks[k]]; m < offsets[tasks[k + 1]]; ++m) {
        // 0 stays 0 where the factor is infinite: a removed row has no gradient.
        const acc_t g = portable::widen(from[m]);
        portable::narrow(g == 0 ? acc_t{0} : g * by[k], to + m);
      }
    }
  };
  const DType dtype = dtype_of(grad.scalar_type());
  portable::with_accumulator(dtype, [&](auto acc) {
    portable::with_float<portable::type_of<decltype(acc)>>(dtype, scale_tasks);
  });
  return out;
}

}  // namespace
}  // namespace mdft

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CPU, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::debiased_entropy_cpu));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::debiased_entropy_backward_cpu));
}
