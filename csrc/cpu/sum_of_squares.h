// Sums of squared differences of two rows, for kernels that need a norm or a mean square.
#pragma once

#include "cpu/simd.h"

#include <algorithm>
#include <cstdint>

namespace dori::cpu {

// Elements summed in the accumulation type before the sum moves on in double: the error does not
// grow with the length of a row.
constexpr int64_t kBlock = 4096;
// Independent sums: one alone would wait for its own previous addition.
constexpr int64_t kLanes = 32;

template <class T>
DORI_INLINE accumulate_t<T> squared_difference(T a, T b) {
  const accumulate_t<T> difference = load(a) - load(b);
  return difference * difference;
}

// Of at most kBlock elements.
template <class T>
DORI_INLINE double sum_of_squares(const T* a, const T* b, int64_t length) {
  accumulate_t<T> lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += squared_difference(a[i + j], b[i + j]);
  }
  for (int64_t j = 0; i < length; ++i, ++j) lanes[j] += squared_difference(a[i], b[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// Of any number of elements.
template <class T>
DORI_INLINE double sum_of_squares_of_row(const T* a, const T* b, int64_t length) {
  double total = 0;
  for (int64_t start = 0; start < length; start += kBlock) {
    total += sum_of_squares(a + start, b + start, std::min(length - start, kBlock));
  }
  return total;
}

}  // namespace dori::cpu
