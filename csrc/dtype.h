// Element types of the kernels. It does not include torch, so kernels do not depend on torch.
#pragma once

#include <type_traits>

namespace dori {

enum class DType { float32, float64, bfloat16, float16 };

// Arithmetic on T is done in double for double and in float for everything narrower.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls body with a value of the dtype's type; Types names the half types (of cpu/ or cuda/).
template <class Types, class Body>
auto dispatch(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::float64:
      return body(double{});
    case DType::bfloat16:
      return body(typename Types::bfloat16{});
    case DType::float16:
      return body(typename Types::float16{});
    default:
      return body(float{});
  }
}

}  // namespace dori
