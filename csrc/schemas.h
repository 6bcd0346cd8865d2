// SPDX-License-Identifier: Apache-2.0
// Every operator of mdft_fast on one page. Each has a folder beside this file: <op>.h is its manual
// and its checks, cpu* computes it on a CPU, gpu* on CUDA and, in tests, over an emulated grid.
#pragma once

namespace mdft {

constexpr const char* kSchemas[] = {
    "merge(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, Tensor columns, "
    "int first, int last, ScalarType out_dtype, Tensor? rows=None) -> Tensor",

    "merge_out(Tensor base, Tensor deltas, Tensor? scales, Tensor coefficients, Tensor columns, "
    "int first, int last, Tensor(a!) out, Tensor? rows=None) -> ()",

    "merge_dots(Tensor?[] grads, Tensor deltas, Tensor? scales, Tensor order, Tensor starts, "
    "Tensor tensor_tiles, int first, int last, Tensor? columns=None, Tensor? rows=None) -> Tensor",

    "debiased_entropy(Tensor logits, Tensor teacher, Tensor? teacher_entropy, "
    "Tensor row_offsets, Tensor task_rows, float alpha, float mu, bool use_entropy, bool filter, "
    "int reweight, bool entropy_of_meta, Tensor? divide_by=None) "
    "-> (Tensor loss, Tensor entropy, Tensor weight, Tensor kept, Tensor grad)",

    "debiased_entropy_backward(Tensor grad, Tensor row_offsets, Tensor task_rows, "
    "Tensor grad_loss) -> Tensor",
};

}  // namespace mdft
