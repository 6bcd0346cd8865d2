// SPDX-License-Identifier: Apache-2.0
// The launchers of debiased_entropy and its backward; see merge/gpu_launch.h for their order.
// Offsets must cover what they index: rows that no task owns, and logits that no row owns, are left
// as they were allocated. (On the CPU that is refused; here it would take waiting for the GPU.)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "debiased_entropy/debiased_entropy.h"
#include "debiased_entropy/gpu_backward_kernel.h"
#include "debiased_entropy/gpu_kernel.h"

namespace mdft::MDFT_TARGET {

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> debiased_entropy(
    const Tensor& logits, const Tensor& teacher, const std::optional<Tensor>& teacher_entropy,
    const Tensor& row_offsets, const Tensor& task_rows, double alpha, double mu, bool use_entropy,
    bool filter, int64_t reweight, bool entropy_of_meta, const std::optional<Tensor>& divide_by) {
  check_debiased_entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu,
                              reweight, divide_by);
  const Grid grid(logits);
  const int64_t R = row_offsets.size(0) - 1;
  const int64_t K = task_rows.size(0) - 1;
  const EntropyResults out = new_results(logits, R, K);
  constexpr auto kDoubles = static_cast<int64_t>(sizeof(RowNumbers) / sizeof(double));
  const Tensor numbers = torch::stable::new_empty(logits, {R, kDoubles}, ScalarType::Double);
  const EntropyArgs args =
      entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu, use_entropy,
                   filter, reweight, entropy_of_meta, divide_by, out,
                   static_cast<RowNumbers*>(numbers.mutable_data_ptr()));
  if (K > 0) {  // a launch of no blocks is an error
    with_accumulator(args.logits_dtype, [&](auto acc) {
      grid.template launch<EntropyKernel<type_of<decltype(acc)>>>(K, args);
    });
  }
  return {out.loss, out.entropy, out.weight, out.kept, out.grad};
}

inline Tensor debiased_entropy_backward(const Tensor& grad, const Tensor& row_offsets,
                                        const Tensor& task_rows, const Tensor& grad_loss) {
  check_debiased_entropy_backward_args(grad, row_offsets, task_rows, grad_loss);
  const Grid grid(grad);
  Tensor out = torch::stable::empty_like(grad);
  const int64_t M = grad.size(0);
  const int64_t K = task_rows.size(0) - 1;
  if (M == 0 || K == 0) return out;    // a launch of no blocks is an error
  constexpr int64_t kElements = 1024;  // a block's share of an average task
  constexpr int64_t kMostBlocks = 64;  // of a task
  const int64_t blocks = std::min(M / K / kElements + 1, kMostBlocks);
  const EntropyBackwardArgs args{.grad = grad.const_data_ptr(),
                                 .row_offsets = row_offsets.const_data_ptr<int64_t>(),
                                 .task_rows = task_rows.const_data_ptr<int64_t>(),
                                 .grad_loss = grad_loss.const_data_ptr(),
                                 .out = out.mutable_data_ptr(),
                                 .M = M,
                                 .R = row_offsets.size(0) - 1,
                                 .K = K,
                                 .blocks = blocks};
  const DType dtype = dtype_of(grad.scalar_type());
  with_accumulator(dtype, [&](auto acc) {
    with_float<type_of<decltype(acc)>>(dtype, [&](auto type) {
      using Kernel = EntropyBackwardKernel<type_of<decltype(type)>>;
      grid.template launch<Kernel>(K * blocks, args);
    });
  });
  return out;
}

}  // namespace mdft::MDFT_TARGET
