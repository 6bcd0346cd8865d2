// SPDX-License-Identifier: Apache-2.0
// debiased_entropy: equations 2 to 6 of docs/method.md for all tasks of a step, value and gradient.
// Rows of all tasks lie one after another; each task has its own number of classes.
//
//   logits           [M]      all rows of the meta-model's logits z; float32, float64, float16 or
//                             bfloat16. -inf counts as probability 0
//   teacher          [M]      the teachers' logits, or their probabilities p where teacher_entropy
//                             is given; float32 (float64 where logits are), or the logits' dtype
//   teacher_entropy  [R]      H(p) of each row, cached; float32 (float64 where logits are)
//   row_offsets      [R + 1]  int64: row r is logits[row_offsets[r] : row_offsets[r + 1]]
//   task_rows        [K + 1]  int64: task k owns rows task_rows[k] .. task_rows[k + 1] - 1
//   alpha, mu                 weight of the cross-entropy; threshold H0 = mu log C
//   use_entropy, filter       switches: the term H(q); remove a row iff H >= H0, else keep all
//   reweight                  0 off (weight 1), 1 exp(H0 - H), 2 the same with mean 1 over the kept
//   entropy_of_meta           H in filter and weight is the meta-model's, not the teacher's
//   divide_by        [K]      or None: each task's number of kept rows. Where these are a part of a
//                             task's rows, the number that belongs to all of them; for reweight 2
//                             the sum of their exp(H0 - H), by which no weight here is divided
//                             then. float32 (float64 where logits are), read on the device
//
// and, per task k, with q = softmax(z):
//   loss    [K]  sum over the kept rows of weight * (alpha CE(p, q) + use_entropy H(q)), divided by
//                divide_by; 0 if none is kept, whatever divide_by
//   entropy [R]  the H that filter and weight read
//   weight  [R]  0 where removed
//   kept    [R]  bool
//   grad    [M]  d loss[task] / d logits, in the dtype of logits; weight and kept held constant.
//                Exactly 0 in a removed row, whatever its logits
//
// Where filter or weight reads an H that is NaN, the row is kept with weight NaN, so that the loss
// of its task and its gradient are NaN: a broken teacher must not pass for one that is unsure.
//
// Offsets must run from 0 to the end without decreasing: the CPU refuses others. A GPU cannot
// without waiting for it: there loss and gradient are NaN in every task whose rows or elements are
// cut off at the end or belong to another task too.
//
// debiased_entropy_backward: grad[m] * grad_loss[task of m], in the dtype of grad.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/checks.h"
#include "debiased_entropy/arguments.h"

namespace mdft {

enum Reweight : int64_t { kReweightOff = 0, kReweightAsWritten = 1, kReweightNormalized = 2 };

inline void check_rows(const char* op, const Tensor& logits, const Tensor& row_offsets,
                       const Tensor& task_rows) {
  STD_TORCH_CHECK(logits.dim() == 1, op, ": logits must be [M], got ", shape(logits));
  STD_TORCH_CHECK(row_offsets.dim() == 1 && row_offsets.size(0) >= 1, op,
                  ": row_offsets must be [R + 1], got ", shape(row_offsets));
  STD_TORCH_CHECK(task_rows.dim() == 1 && task_rows.size(0) >= 1, op,
                  ": task_rows must be [K + 1], got ", shape(task_rows));
  check_floating(op, "logits", logits);
  check_dtype(op, "row_offsets", row_offsets, ScalarType::Long);
  check_dtype(op, "task_rows", task_rows, ScalarType::Long);
  check_beside(op, "logits", logits, row_offsets);
  check_beside(op, "row_offsets", row_offsets, logits);
  check_beside(op, "task_rows", task_rows, logits);
}

// One number for each task, in the dtype of the sums.
inline void check_of_each_task(const char* op, const char* what, const Tensor& x,
                               const Tensor& task_rows, const Tensor& logits) {
  const int64_t K = task_rows.size(0) - 1;
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == K, op, ": ", what, " must be [", K, "], got ",
                  shape(x));
  check_dtype(op, what, x, accumulator(logits.scalar_type()));
  check_beside(op, what, x, logits);
}

inline void check_debiased_entropy_args(const Tensor& logits, const Tensor& teacher,
                                        const std::optional<Tensor>& teacher_entropy,
                                        const Tensor& row_offsets, const Tensor& task_rows,
                                        double alpha, double mu, int64_t reweight,
                                        const std::optional<Tensor>& divide_by) {
  constexpr const char* op = "debiased_entropy";
  check_rows(op, logits, row_offsets, task_rows);
  STD_TORCH_CHECK(teacher.dim() == 1 && teacher.size(0) == logits.size(0),
                  "debiased_entropy: teacher must be [", logits.size(0), "], got ", shape(teacher));
  const ScalarType acc = accumulator(logits.scalar_type());
  STD_TORCH_CHECK(teacher.scalar_type() == acc || teacher.scalar_type() == logits.scalar_type(),
                  "debiased_entropy: teacher must be ", name(acc), " or the dtype of logits, got ",
                  name(teacher.scalar_type()));
  check_beside(op, "teacher", teacher, logits);
  if (teacher_entropy) {
    const int64_t R = row_offsets.size(0) - 1;
    STD_TORCH_CHECK(teacher_entropy->dim() == 1 && teacher_entropy->size(0) == R,
                    "debiased_entropy: teacher_entropy must be [", R, "], got ",
                    shape(*teacher_entropy));
    check_dtype(op, "teacher_entropy", *teacher_entropy, acc);
    check_beside(op, "teacher_entropy", *teacher_entropy, logits);
  }
  STD_TORCH_CHECK(alpha >= 0, "debiased_entropy: alpha must be >= 0, got ", alpha);
  STD_TORCH_CHECK(mu >= 0, "debiased_entropy: mu must be >= 0, got ", mu);
  STD_TORCH_CHECK(reweight >= kReweightOff && reweight <= kReweightNormalized,
                  "debiased_entropy: reweight must be 0, 1 or 2, got ", reweight);
  if (divide_by) check_of_each_task(op, "divide_by", *divide_by, task_rows, logits);
}

inline void check_debiased_entropy_backward_args(const Tensor& grad, const Tensor& row_offsets,
                                                 const Tensor& task_rows, const Tensor& grad_loss) {
  constexpr const char* op = "debiased_entropy_backward";
  check_rows(op, grad, row_offsets, task_rows);
  check_of_each_task(op, "grad_loss", grad_loss, task_rows, grad);
}

struct EntropyResults {
  Tensor loss, entropy, weight, kept, grad;
};

inline EntropyResults new_results(const Tensor& logits, int64_t R, int64_t K) {
  const ScalarType acc = accumulator(logits.scalar_type());
  return {.loss = torch::stable::new_empty(logits, {K}, acc),
          .entropy = torch::stable::new_empty(logits, {R}, acc),
          .weight = torch::stable::new_empty(logits, {R}, acc),
          .kept = torch::stable::new_empty(logits, {R}, ScalarType::Bool),
          .grad = torch::stable::empty_like(logits)};
}

inline const void* pointer_to(const std::optional<Tensor>& x) {
  return x ? x->const_data_ptr() : nullptr;
}

// What a checked call reads and writes; `numbers` has room for R rows.
inline EntropyArgs entropy_args(const Tensor& logits, const Tensor& teacher,
                                const std::optional<Tensor>& teacher_entropy,
                                const Tensor& row_offsets, const Tensor& task_rows, double alpha,
                                double mu, bool use_entropy, bool filter, int64_t reweight,
                                bool entropy_of_meta, const std::optional<Tensor>& divide_by,
                                const EntropyResults& out, RowNumbers* numbers) {
  return {.logits = logits.const_data_ptr(),
          .teacher = teacher.const_data_ptr(),
          .teacher_entropy = pointer_to(teacher_entropy),
          .row_offsets = row_offsets.const_data_ptr<int64_t>(),
          .task_rows = task_rows.const_data_ptr<int64_t>(),
          .divide_by = pointer_to(divide_by),
          .numbers = numbers,
          .loss = out.loss.mutable_data_ptr(),
          .entropy = out.entropy.mutable_data_ptr(),
          .weight = out.weight.mutable_data_ptr(),
          .kept = out.kept.mutable_data_ptr<bool>(),
          .grad = out.grad.mutable_data_ptr(),
          .logits_dtype = dtype_of(logits.scalar_type()),
          .teacher_dtype = dtype_of(teacher.scalar_type()),
          .M = logits.size(0),
          .R = row_offsets.size(0) - 1,
          .K = task_rows.size(0) - 1,
          .alpha = alpha,
          .mu = mu,
          .use_entropy = use_entropy,
          .filter = filter,
          .reweight = reweight != kReweightOff,
          .normalize = reweight == kReweightNormalized && !divide_by,
          .entropy_of_meta = entropy_of_meta};
}

}  // namespace mdft
