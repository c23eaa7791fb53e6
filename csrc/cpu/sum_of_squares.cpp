#include "cpu/sum_of_squares.h"

#include "cpu/float16.h"

#include <algorithm>
#include <bit>

namespace dori::cpu {
namespace {

// Independent partial sums: a single one would wait for its own previous addition.
constexpr int64_t kLanes = 64;

template <class T>
DORI_INLINE accumulate_t<T> squared_difference(T a, T b) {
  const accumulate_t<T> difference = load(a) - load(b);
  return difference * difference;
}

// Adds the partial sums pairwise, 32 + 16 + ... + 1 additions in a fixed order.
template <class A>
DORI_INLINE A sum(A* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

template <class T>
DORI_INLINE double sum_of_squares_of(const T* a, const T* b, int64_t length) {
  // element i always goes to partial sum i % 64, whatever the vector width
  accumulate_t<T> lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += squared_difference(a[i + j], b[i + j]);
  }
  for (int64_t j = 0; i < length; ++i, ++j) lanes[j] += squared_difference(a[i], b[i]);
  return sum(lanes);
}

// Two bfloat16 in one word become floats by a shift and a mask; widening one by one would spend
// most of the time on moving them into place. Even elements go to the lower 32 partial sums, odd
// ones to the upper.
DORI_INLINE double sum_of_squares_of(const bfloat16* a, const bfloat16* b, int64_t length) {
  using Pair [[gnu::may_alias, gnu::aligned(2)]] = uint32_t;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    const auto* x = reinterpret_cast<const Pair*>(a + i);
    const auto* y = reinterpret_cast<const Pair*>(b + i);
#pragma omp simd
    for (int64_t j = 0; j < kLanes / 2; ++j) {
      const float low = std::bit_cast<float>(x[j] << 16) - std::bit_cast<float>(y[j] << 16);
      const float high =
          std::bit_cast<float>(x[j] & 0xffff0000u) - std::bit_cast<float>(y[j] & 0xffff0000u);
      lanes[j] += low * low;
      lanes[j + kLanes / 2] += high * high;
    }
  }
  for (int64_t j = 0; i < length; ++i, ++j) lanes[j] += squared_difference(a[i], b[i]);
  return sum(lanes);
}

}  // namespace

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_SUM_OF_SQUARES(T)                                         \
  DORI_SIMD double sum_of_squares(const T* a, const T* b, int64_t n) { \
    return sum_of_squares_of(a, b, n);                                 \
  }
DORI_SUM_OF_SQUARES(float)
DORI_SUM_OF_SQUARES(double)
DORI_SUM_OF_SQUARES(bfloat16)
#undef DORI_SUM_OF_SQUARES

// float16 is widened into buffers of 1024 floats, which stay in the L1 cache.
double sum_of_squares(const float16* a, const float16* b, int64_t length) {
  float x[kFloat16Chunk], y[kFloat16Chunk];
  double sum = 0;
  for (int64_t i = 0; i < length; i += kFloat16Chunk) {
    const int64_t count = std::min(length - i, kFloat16Chunk);
    widen(a + i, x, count);
    widen(b + i, y, count);
    sum += sum_of_squares(x, y, count);
  }
  return sum;
}

}  // namespace dori::cpu
