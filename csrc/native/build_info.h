// SPDX-License-Identifier: Apache-2.0
#pragma once

// Facts about the build. CMake fills in build_info.cpp.in; an empty text means "none". A file of
// its own, so that a new commit compiles these lines again and not pybind11's headers.
struct BuildInfo {
  const char* torch_version;
  const char* torch_target_version;
  const char* compiler;
  const char* nvcc_version;
  const char* cuda_architectures;  // separated by semicolons
  const char* flags;
  const char* commit;
  const char* build_type;
};

extern const BuildInfo kBuildInfo;
