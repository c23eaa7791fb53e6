// Sums of squared differences of two rows, for the kernels that need a norm or a mean square.
#pragma once

#include "cpu/simd.h"

#include <algorithm>
#include <cstdint>

namespace dori::cpu {

// One accumulator would wait for its own previous addition; four keep the units busy. Blocks are
// summed in double, so that the error does not grow with the length of the row.
constexpr int64_t kLanes = 4;
constexpr int64_t kBlock = 4096;

template <class T>
DORI_INLINE accumulate_t<T> squared_difference(T a, T b) {
  const accumulate_t<T> difference = load(a) - load(b);
  return difference * difference;
}

// At most kBlock elements.
template <class T>
DORI_INLINE double sum_of_squares_of_block(const T* a, const T* b, int64_t block) {
  const int64_t lane = block / kLanes;
  accumulate_t<T> s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < lane; ++i) {
    s0 += squared_difference(a[i], b[i]);
    s1 += squared_difference(a[i + lane], b[i + lane]);
    s2 += squared_difference(a[i + 2 * lane], b[i + 2 * lane]);
    s3 += squared_difference(a[i + 3 * lane], b[i + 3 * lane]);
  }
  for (int64_t i = lane * kLanes; i < block; ++i) s0 += squared_difference(a[i], b[i]);
  return (static_cast<double>(s0) + s1) + (static_cast<double>(s2) + s3);
}

template <class T>
DORI_INLINE double sum_of_squares(const T* a, const T* b, int64_t length) {
  double total = 0;
  for (int64_t start = 0; start < length; start += kBlock) {
    total += sum_of_squares_of_block(a + start, b + start, std::min(length - start, kBlock));
  }
  return total;
}

}  // namespace dori::cpu
