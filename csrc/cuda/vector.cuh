// 16-byte vector access and the arithmetic types of a GPU. Knows no torch.
#pragma once

#include "dtype.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace dori::cuda {

struct Types {
  using bfloat16 = __nv_bfloat16;
  using float16 = __half;
};

__device__ inline float load(float x) { return x; }
__device__ inline double load(double x) { return x; }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float load(__half x) { return __half2float(x); }

__device__ inline void store(float& to, float x) { to = x; }
__device__ inline void store(double& to, double x) { to = x; }
__device__ inline void store(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }
__device__ inline void store(__half& to, float x) { to = __float2half_rn(x); }

// Width elements that one instruction moves, at most 16 bytes.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Vector {
  T value[Width];
};

// 8 half-precision, 4 float or 2 double elements.
template <class T>
constexpr int kVectorWidth = 16 / sizeof(T);

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// True if rows that start at multiples of these strides (in elements) stay 16-byte aligned.
template <class T, class... Strides>
bool aligned_rows(Strides... strides) {
  return ((strides % kVectorWidth<T> == 0) && ...);
}

}  // namespace dori::cuda
