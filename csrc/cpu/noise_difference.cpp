#include "noise_difference.h"

#include "cpu/simd.h"

#include <algorithm>
#include <cmath>

namespace dori::cpu {
namespace {

// One accumulator would wait for its own previous addition; four keep the units busy. Blocks are
// summed in double, so that the error does not grow with the length of the row.
constexpr int64_t kLanes = 4;
constexpr int64_t kBlock = 4096;

template <class T>
DORI_INLINE accumulate_t<T> squared_difference(T a, T b) {
  const accumulate_t<T> difference = load(a) - load(b);
  return difference * difference;
}

template <class T>
DORI_INLINE double sum_of_squares(const T* a, const T* b, int64_t length) {
  double total = 0;
  for (int64_t start = 0; start < length; start += kBlock, a += kBlock, b += kBlock) {
    const int64_t block = std::min(length - start, kBlock);
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
    total += (static_cast<double>(s0) + s1) + (static_cast<double>(s2) + s3);
  }
  return total;
}

// target_clones does not go with templates.
#define DORI_ROW(T) \
  DORI_SIMD double row(const T* a, const T* b, int64_t n) { return sum_of_squares(a, b, n); }
DORI_ROW(float)
DORI_ROW(double)
DORI_ROW(bfloat16)
DORI_ROW(float16)
#undef DORI_ROW

}  // namespace

void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t p = r / task.seeds, s = r % task.seeds;
      const T* cond = static_cast<const T*>(task.cond) + p * task.cond_prompt_stride +
                      s * task.cond_seed_stride;
      const T* uncond = static_cast<const T*>(task.uncond) + p * task.uncond_prompt_stride +
                        s * task.uncond_seed_stride;
      const double norm = std::sqrt(row(cond, uncond, task.length));
      static_cast<accumulate_t<T>*>(task.norm)[r] = static_cast<accumulate_t<T>>(norm);
    }
  });
}

}  // namespace dori::cpu
