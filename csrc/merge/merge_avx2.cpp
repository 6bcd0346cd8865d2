// SPDX-License-Identifier: Apache-2.0
// The loops of merge built for AVX2, FMA and F16C; merge_cpu.cpp chooses them at run time.
// Includes nothing of torch: see common/number.h.
#if defined(__x86_64__)
#define MDFT_ISA avx2
#include "merge/merge_loops.h"

namespace mdft {
MergeLoops merge_loops_avx2() { return {avx2::merge_range, avx2::merge_dots_range}; }
}  // namespace mdft
#endif
