// SPDX-License-Identifier: Apache-2.0
// Words for error messages, the same for every device.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "common/number.h"

namespace mdft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape(const Tensor& x) {
  std::string text = "[";
  for (int64_t i = 0; i < x.dim(); ++i) text += (i ? ", " : "") + std::to_string(x.size(i));
  return text + "]";
}

// The name that Python prints, without "torch.".
inline std::string name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "another dtype";
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// Sums of float64 are kept in float64, all others in float32; the two never mix in one call.
inline ScalarType accumulator(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Byte:
      return DType::kInt4;
    case ScalarType::Float:
      return DType::kFloat32;
    default:
      cannot_happen("a dtype that no operator takes");
  }
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && (!a.is_cuda() || a.get_device() == b.get_device());
}

inline void check_floating(const char* op, const char* what, const Tensor& x) {
  STD_TORCH_CHECK(is_floating(x.scalar_type()), op, ": ", what,
                  " must be float32, float64, float16 or bfloat16, got ", name(x.scalar_type()));
}

inline void check_dtype(const char* op, const char* what, const Tensor& x, ScalarType wanted) {
  STD_TORCH_CHECK(x.scalar_type() == wanted, op, ": ", what, " must be ", name(wanted), ", got ",
                  name(x.scalar_type()));
}

// One of the 16- and 32-bit floats, or float64 exactly where the accumulator is float64.
inline void check_accumulates(const char* op, const char* what, ScalarType type, ScalarType acc) {
  STD_TORCH_CHECK(is_floating(type) && accumulator(type) == acc, op, ": ", what,
                  acc == ScalarType::Double ? " must be float64 like the rest"
                                            : " must be float32, float16 or bfloat16",
                  ", got ", name(type));
}

inline void check_beside(const char* op, const char* what, const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(same_device(x, other), op, ": ", what,
                  " must be on the device of the other tensors, got another device");
  STD_TORCH_CHECK(x.is_contiguous(), op, ": ", what, " must be contiguous, got strides");
}

}  // namespace mdft
