// SPDX-License-Identifier: Apache-2.0
// The loops of debiased_entropy built for AVX2, FMA and F16C; cpu.cpp chooses them at run time.
// Includes nothing of torch: see common/number.h.
#if defined(__x86_64__)
#define MDFT_TARGET avx2
#include "debiased_entropy/cpu_loops.h"

namespace mdft {
EntropyLoops entropy_loops_avx2() { return {avx2::rows_range, avx2::gradient_range}; }
}  // namespace mdft
#endif
