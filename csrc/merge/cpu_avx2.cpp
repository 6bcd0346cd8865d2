// SPDX-License-Identifier: Apache-2.0
// The loop of merge built for AVX2, FMA and F16C; cpu.cpp chooses it at run time. Includes nothing
// of torch: see common/number.h.
#if defined(__x86_64__)
#define MDFT_TARGET avx2
#include "merge/cpu_loops.h"

namespace mdft {
MergeLoop merge_loop_avx2() { return avx2::merge_range; }
}  // namespace mdft
#endif
