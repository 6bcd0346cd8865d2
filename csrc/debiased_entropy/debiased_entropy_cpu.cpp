// SPDX-License-Identifier: Apache-2.0
// debiased_entropy on the CPU: 2 M values read, M written; the second pass finds them in cache.
// At a step's size (8 tasks x 16 rows, some 6,000 logits) the time is the exponentials'.
#define MDFT_ISA portable
#include "debiased_entropy/debiased_entropy_loops.h"
#undef MDFT_ISA

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/cpu.h"
#include "debiased_entropy/debiased_entropy.h"

namespace mdft {

EntropyLoops entropy_loops_avx2();  // debiased_entropy_avx2.cpp

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

struct Choices {
  double alpha, mu;
  bool use_entropy, filter;
  int64_t reweight;
  bool entropy_of_meta;
};

// Filter, weight and loss of one task (METHOD's equations 4 to 6), rows in order.
template <typename acc_t>
void reduce_task(const Choices& choose, const RowNumbers* numbers, const int64_t* row_offsets,
                 int64_t begin, int64_t end, acc_t* entropy, acc_t* weight, bool* kept,
                 double* scale, acc_t* loss) {
  int64_t n = 0;
  int64_t C = -1;
  acc_t H0 = 0;
  double weights = 0;
  for (int64_t r = begin; r < end; ++r) {
    if (C != row_offsets[r + 1] - row_offsets[r]) {  // else as in the row before
      C = row_offsets[r + 1] - row_offsets[r];
      H0 = static_cast<acc_t>(choose.mu * std::log(static_cast<double>(C)));
    }
    entropy[r] = static_cast<acc_t>(choose.entropy_of_meta ? numbers[r].entropy
                                                           : numbers[r].teacher_entropy);
    kept[r] = !choose.filter || !(entropy[r] >= H0);  // a NaN is kept, and its weight is NaN
    const bool one = choose.reweight == kReweightOff && (!choose.filter || entropy[r] < H0);
    scale[r] = !kept[r] ? 0 : one ? 1 : std::exp(H0 - entropy[r]);
    n += kept[r];
    weights += scale[r];
  }
  const double mean = choose.reweight == kReweightNormalized && n > 0 ? weights / n : 1;
  double total = 0;
  for (int64_t r = begin; r < end; ++r) {
    weight[r] = kept[r] ? static_cast<acc_t>(scale[r] / mean) : 0;  // the mean may be NaN
    if (!kept[r]) continue;  // masked, not multiplied: a removed row may hold anything
    const double row_loss =
        choose.alpha * numbers[r].cross_entropy + (choose.use_entropy ? numbers[r].entropy : 0);
    scale[r] = scale[r] / mean / n;
    total += scale[r] * row_loss;
  }
  *loss = static_cast<acc_t>(total);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> debiased_entropy_cpu(
    const Tensor& logits, const Tensor& teacher, const std::optional<Tensor>& teacher_entropy,
    const Tensor& row_offsets, const Tensor& task_rows, double alpha, double mu, bool use_entropy,
    bool filter, int64_t reweight, bool entropy_of_meta) {
  check_debiased_entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu,
                              reweight);
  const int64_t M = logits.size(0);
  const int64_t R = row_offsets.size(0) - 1;
  const int64_t K = task_rows.size(0) - 1;
  const int64_t* offsets = row_offsets.const_data_ptr<int64_t>();
  const int64_t* tasks = task_rows.const_data_ptr<int64_t>();
  check_offsets("row_offsets", offsets, R, M);
  check_offsets("task_rows", tasks, K, R);

  const ScalarType acc = accumulator(logits.scalar_type());
  Tensor loss = torch::stable::new_empty(logits, {K}, acc);
  Tensor entropy = torch::stable::new_empty(logits, {R}, acc);
  Tensor weight = torch::stable::new_empty(logits, {R}, acc);
  Tensor kept = torch::stable::new_empty(logits, {R}, ScalarType::Bool);
  Tensor grad = torch::stable::empty_like(logits);

  std::vector<RowNumbers> numbers(R);
  std::vector<double> scale(R);
  const EntropyArgs args{logits.const_data_ptr(),
                         teacher.const_data_ptr(),
                         teacher_entropy ? teacher_entropy->const_data_ptr() : nullptr,
                         offsets,
                         numbers.data(),
                         scale.data(),
                         grad.mutable_data_ptr(),
                         dtype_of(logits.scalar_type()),
                         dtype_of(teacher.scalar_type()),
                         alpha,
                         use_entropy};
  const int64_t grain = row_grain(R, M);
  torch::stable::parallel_for(0, R, grain,
                              [&](int64_t begin, int64_t end) { loops().rows(args, begin, end); });
  const Choices choose{alpha, mu, use_entropy, filter, reweight, entropy_of_meta};
  const auto reduce = [&](auto* type) {
    using acc_t = std::remove_pointer_t<decltype(type)>;
    for (int64_t k = 0; k < K; ++k) {
      reduce_task(choose, numbers.data(), offsets, tasks[k], tasks[k + 1],
                  entropy.mutable_data_ptr<acc_t>(), weight.mutable_data_ptr<acc_t>(),
                  kept.mutable_data_ptr<bool>(), scale.data(), loss.mutable_data_ptr<acc_t>() + k);
    }
  };
  acc == ScalarType::Double ? reduce(static_cast<double*>(nullptr))
                            : reduce(static_cast<float*>(nullptr));
  torch::stable::parallel_for(
      0, R, grain, [&](int64_t begin, int64_t end) { loops().gradient(args, begin, end); });
  return {loss, entropy, weight, kept, grad};
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
  portable::with_type(dtype_of(grad.scalar_type()), [&](auto* type) {
    using scalar_t = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
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
  });
  return out;
}

}  // namespace
}  // namespace mdft

STABLE_TORCH_LIBRARY_IMPL(mdft_fast, CPU, m) {
  m.impl("debiased_entropy", TORCH_BOX(&mdft::debiased_entropy_cpu));
  m.impl("debiased_entropy_backward", TORCH_BOX(&mdft::debiased_entropy_backward_cpu));
}
