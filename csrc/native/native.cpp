// SPDX-License-Identifier: Apache-2.0
// What this build is and what this CPU can do. No tensors pass through here: kernels have one
// door, torch.ops.mdft_fast.
#include <pybind11/pybind11.h>

#include <string_view>

#include "native/build_info.h"

namespace py = pybind11;

namespace {

py::object text_or_none(std::string_view text) {
  if (text.empty()) return py::none();
  return py::str(text.data(), text.size());
}

py::list split_at_semicolons(std::string_view text) {
  py::list parts;
  while (!text.empty()) {
    const size_t end = text.find(';');
    const std::string_view part = text.substr(0, end);
    parts.append(py::str(part.data(), part.size()));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["torch_version"] = kBuildInfo.torch_version;
  info["torch_target_version"] = kBuildInfo.torch_target_version;
  info["compiler"] = kBuildInfo.compiler;
  info["nvcc_version"] = text_or_none(kBuildInfo.nvcc_version);
  info["cuda_architectures"] = split_at_semicolons(kBuildInfo.cuda_architectures);
  info["flags"] = kBuildInfo.flags;
  info["commit"] = text_or_none(kBuildInfo.commit);
  info["build_type"] = kBuildInfo.build_type;
  return info;
}

py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features["avx2"] = __builtin_cpu_supports("avx2") != 0;
  features["fma"] = __builtin_cpu_supports("fma") != 0;
  features["f16c"] = __builtin_cpu_supports("f16c") != 0;
  features["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  features["avx512_bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
#else
  for (const char* name : {"avx2", "fma", "f16c", "avx512f", "avx512_bf16"}) features[name] = false;
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Facts about this build of mdft_fast and about this CPU.";
  m.def("build_info", &build_info, "What the libraries were built with and from.");
  m.def("cpu_features", &cpu_features, "Which instruction sets this CPU and system offer.");
}
