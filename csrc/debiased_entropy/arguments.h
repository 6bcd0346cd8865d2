// SPDX-License-Identifier: Apache-2.0
// What debiased_entropy's loops and kernels read and write, on every device. Free of torch: see
// common/number.h.
#pragma once

#include "common/number.h"

namespace mdft {

struct RowNumbers {       // of one row, in the accumulator's precision widened to double
  double shift, log_sum;  // log q_c = z_c - shift - log_sum
  double teacher_shift, teacher_log_sum;  // the same for p, unused where p is given
  double entropy, teacher_entropy, cross_entropy;
  double scale;  // of the row in its task's loss: weight / divisor; 0 where removed
};

struct EntropyArgs {
  const void* logits;           // [M]
  const void* teacher;          // [M]
  const void* teacher_entropy;  // [R] or null: teacher holds logits
  const int64_t* row_offsets;   // [R + 1]
  const int64_t* task_rows;     // [K + 1]
  const void* divide_by;        // [K] or null: the task's kept rows
  RowNumbers* numbers;          // [R]
  void* loss;                   // [K]
  void* entropy;                // [R]
  void* weight;                 // [R]
  bool* kept;                   // [R]
  void* grad;                   // [M]
  DType logits_dtype, teacher_dtype;
  int64_t M, R, K;
  double alpha, mu;
  bool use_entropy, filter, reweight;
  bool normalize;  // the weights have mean 1 over the task's kept rows
  bool entropy_of_meta;
};

}  // namespace mdft
