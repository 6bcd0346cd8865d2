// SPDX-License-Identifier: Apache-2.0
// The launchers of debiased_entropy and its backward; see merge/merge_launch.h for their order.
// Offsets must cover what they index: rows that no task owns, and logits that no row owns, are left
// as they were allocated. (On the CPU that is refused; here it would take waiting for the GPU.)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "debiased_entropy/debiased_entropy.h"
#include "debiased_entropy/debiased_entropy_backward_kernel.h"
#include "debiased_entropy/debiased_entropy_kernel.h"

namespace mdft::MDFT_ISA {

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> debiased_entropy(
    const Tensor& logits, const Tensor& teacher, const std::optional<Tensor>& teacher_entropy,
    const Tensor& row_offsets, const Tensor& task_rows, double alpha, double mu, bool use_entropy,
    bool filter, int64_t reweight, bool entropy_of_meta) {
  check_debiased_entropy_args(logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu,
                              reweight);
  const Grid grid(logits);
  const ScalarType acc = accumulator(logits.scalar_type());
  const int64_t R = row_offsets.size(0) - 1;
  const int64_t K = task_rows.size(0) - 1;
  Tensor loss = torch::stable::new_empty(logits, {K}, acc);
  Tensor entropy = torch::stable::new_empty(logits, {R}, acc);
  Tensor weight = torch::stable::new_empty(logits, {R}, acc);
  Tensor kept = torch::stable::new_empty(logits, {R}, ScalarType::Bool);
  Tensor grad = torch::stable::empty_like(logits);
  constexpr auto kDoubles = static_cast<int64_t>(sizeof(RowNumbers) / sizeof(double));
  const Tensor numbers = torch::stable::new_empty(logits, {R, kDoubles}, ScalarType::Double);
  const EntropyArgs args{logits.const_data_ptr(),
                         teacher.const_data_ptr(),
                         teacher_entropy ? teacher_entropy->const_data_ptr() : nullptr,
                         row_offsets.const_data_ptr<int64_t>(),
                         task_rows.const_data_ptr<int64_t>(),
                         static_cast<RowNumbers*>(numbers.mutable_data_ptr()),
                         loss.mutable_data_ptr(),
                         entropy.mutable_data_ptr(),
                         weight.mutable_data_ptr(),
                         kept.mutable_data_ptr<bool>(),
                         grad.mutable_data_ptr(),
                         dtype_of(logits.scalar_type()),
                         dtype_of(teacher.scalar_type()),
                         logits.size(0),
                         R,
                         alpha,
                         mu,
                         use_entropy,
                         filter,
                         reweight != kReweightOff,
                         reweight == kReweightNormalized,
                         entropy_of_meta};
  if (K > 0) {  // a launch of no blocks is an error
    acc == ScalarType::Double ? grid.template launch<EntropyKernel<double>>(K, args)
                              : grid.template launch<EntropyKernel<float>>(K, args);
  }
  return {loss, entropy, weight, kept, grad};
}

inline void launch_entropy_backward(const Grid& grid, DType dtype, int64_t blocks,
                                    const EntropyBackwardArgs& args) {
  switch (dtype) {
    case DType::kFloat32:
      return grid.launch<EntropyBackwardKernel<float>>(blocks, args);
    case DType::kBFloat16:
      return grid.launch<EntropyBackwardKernel<BFloat16Bits>>(blocks, args);
    case DType::kFloat16:
      return grid.launch<EntropyBackwardKernel<Float16Bits>>(blocks, args);
    case DType::kFloat64:
      return grid.launch<EntropyBackwardKernel<double>>(blocks, args);
    case DType::kInt8:
    case DType::kInt4:
      return;  // check_debiased_entropy_backward_args: floating dtypes only
  }
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
  const EntropyBackwardArgs args{grad.const_data_ptr(),
                                 row_offsets.const_data_ptr<int64_t>(),
                                 task_rows.const_data_ptr<int64_t>(),
                                 grad_loss.const_data_ptr(),
                                 out.mutable_data_ptr(),
                                 M,
                                 row_offsets.size(0) - 1,
                                 blocks};
  launch_entropy_backward(grid, dtype_of(grad.scalar_type()), K * blocks, args);
  return out;
}

}  // namespace mdft::MDFT_ISA
