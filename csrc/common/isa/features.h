// SPDX-License-Identifier: Apache-2.0
// Which of the CPU's instruction sets the loops may use.
#pragma once

#include <cstdlib>
#include <cstring>

namespace mdft {

// MDFT_CPU=portable in the environment turns the AVX2 loops off, for tests and comparisons.
inline bool has_avx2() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("MDFT_CPU");
  if (wanted != nullptr && std::strcmp(wanted, "portable") == 0) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

}  // namespace mdft
