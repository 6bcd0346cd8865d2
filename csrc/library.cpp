// SPDX-License-Identifier: Apache-2.0
// Every operator of mdft_fast on one page. Each folder beside this file holds one of them: <op>.h
// is its manual and its checks, <op>_cpu.cpp and <op>_cuda.cu compute it.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mdft_fast, m) {
  m.def(
      "merge(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, Tensor columns, "
      "int first, int last, ScalarType out_dtype) -> Tensor");
  m.def(
      "merge_out(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, "
      "Tensor columns, int first, int last, Tensor(a!) out) -> ()");
  m.def(
      "merge_dots(Tensor?[] grads, Tensor deltas, Tensor? scales, Tensor order, "
      "Tensor starts, Tensor tensor_tiles, int first, int last) -> Tensor");
  m.def(
      "debiased_entropy(Tensor logits, Tensor teacher, Tensor? teacher_entropy, "
      "Tensor row_offsets, Tensor task_rows, float alpha, float mu, bool use_entropy, "
      "bool filter, int reweight, bool entropy_of_meta) "
      "-> (Tensor loss, Tensor entropy, Tensor weight, Tensor kept, Tensor grad)");
  m.def(
      "debiased_entropy_backward(Tensor grad, Tensor row_offsets, Tensor task_rows, "
      "Tensor grad_loss) -> Tensor");
}
