// Sums of squared differences of two rows, for kernels that need a norm or a mean square.
#pragma once

#include "cpu/simd.h"

#include <algorithm>
#include <cstdint>

namespace dori::cpu {

// Elements summed in the accumulation type before the sum continues in double (16 KiB: 4096
// floats): the error does not grow with the length of a row, and a block used twice stays in the L1
// cache.
template <class T>
constexpr int64_t kBlock = 16384 / sizeof(T);

// Sum of squared differences of at most kBlock elements.
double sum_of_squares(const float* a, const float* b, int64_t length);
double sum_of_squares(const double* a, const double* b, int64_t length);
double sum_of_squares(const bfloat16* a, const bfloat16* b, int64_t length);
double sum_of_squares(const float16* a, const float16* b, int64_t length);

// Sum of squared differences of any number of elements.
template <class T>
double sum_of_squares_of_row(const T* a, const T* b, int64_t length) {
  double total = 0;
  for (int64_t start = 0; start < length; start += kBlock<T>) {
    total += sum_of_squares(a + start, b + start, std::min(length - start, kBlock<T>));
  }
  return total;
}

}  // namespace dori::cpu
