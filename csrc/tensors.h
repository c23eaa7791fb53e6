// Torch for the bindings: memory layout, dtypes, parallel rows, the CUDA stream.
#pragma once

#include "dtype.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#ifdef DORI_CUDA
#include <cuda_runtime_api.h>

// Weak, so that one library also loads on a torch without CUDA, where it is never called.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace dori {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType kernel_dtype(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

inline ScalarType accumulate_dtype(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline int64_t elements_from(const Tensor& x, int64_t first_dim) {
  int64_t count = 1;
  for (int64_t d = first_dim; d < x.dim(); ++d) count *= x.size(d);
  return count;
}

// x itself where the dimensions from first_dim on are one contiguous run of memory, else a
// contiguous copy. Leading dimensions keep their strides, so an expanded one is never materialized.
inline Tensor with_contiguous_rows(const Tensor& x, int64_t first_dim) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= first_dim; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return torch::stable::contiguous(x);
    expected *= x.size(d);
  }
  return x;
}

// Calls body(begin, end) over ranges of rows on torch's own threads; a task of fewer than 32768
// elements costs more to hand out than to do.
template <class Body>
void parallel_rows(int64_t rows, int64_t row_length, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, row_length));
  torch::stable::parallel_for(0, rows, grain, body);
}

#ifdef DORI_CUDA
// Launches on the tensor's device, on torch's current stream of it.
template <class Launch>
void on_current_stream(const char* op, const Tensor& x, const Launch& launch) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
                  ": this torch has no CUDA; install a CUDA build of torch");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const auto error = static_cast<cudaError_t>(launch(static_cast<cudaStream_t>(stream)));
  STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}
#endif

}  // namespace dori
