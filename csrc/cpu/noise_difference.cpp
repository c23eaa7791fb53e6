#include "noise_difference.h"

#include "cpu/float16.h"
#include "cpu/simd.h"

#include <algorithm>
#include <cmath>

namespace dori::cpu {
namespace {

// Elements summed in the accumulation type before the sum moves on in double: the error does not
// grow with the length of a row, and a block of a shared eps_uncond stays in the L1 cache.
template <class T>
constexpr int64_t kBlock = 16384 / sizeof(T);
// Independent sums: one alone would wait for its own previous addition.
constexpr int64_t kLanes = 64;
// Prompts that use a block of a shared eps_uncond before the next block is read.
constexpr int64_t kGroup = 64;

template <class T>
DORI_INLINE accumulate_t<T> squared_difference(T a, T b) {
  const accumulate_t<T> difference = load(a) - load(b);
  return difference * difference;
}

template <class A>
DORI_INLINE A sum(A* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

template <class T>
DORI_INLINE double sum_of_squares(const T* a, const T* b, int64_t length) {
  accumulate_t<T> lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += squared_difference(a[i + j], b[i + j]);
  }
  for (int64_t j = 0; i < length; ++i, ++j) lanes[j] += squared_difference(a[i], b[i]);
  return sum(lanes);
}

// Two bfloat16 in one word become float by a shift and a mask, where widening one by one would
// spend most of the time on moving them into place.
DORI_INLINE double sum_of_squares(const bfloat16* a, const bfloat16* b, int64_t length) {
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

// target_clones does not go with templates.
#define DORI_BLOCK_SUM(T) \
  DORI_SIMD double block_sum(const T* a, const T* b, int64_t n) { return sum_of_squares(a, b, n); }
DORI_BLOCK_SUM(float)
DORI_BLOCK_SUM(double)
DORI_BLOCK_SUM(bfloat16)
#undef DORI_BLOCK_SUM

double block_sum(const float16* a, const float16* b, int64_t length) {
  float x[kFloat16Chunk], y[kFloat16Chunk];
  double sum = 0;
  for (int64_t i = 0; i < length; i += kFloat16Chunk) {
    const int64_t count = std::min(length - i, kFloat16Chunk);
    widen(a + i, x, count);
    widen(b + i, y, count);
    sum += block_sum(x, y, count);
  }
  return sum;
}

// Norms of one seed for `count` prompts from `prompt` on, block by block; more than one prompt only
// where they share their eps_uncond.
template <class T>
void norms(const NoiseDifference& task, int64_t seed, int64_t prompt, int64_t count) {
  const T* cond = static_cast<const T*>(task.cond) + prompt * task.cond_prompt_stride +
                  seed * task.cond_seed_stride;
  const T* uncond = static_cast<const T*>(task.uncond) + prompt * task.uncond_prompt_stride +
                    seed * task.uncond_seed_stride;
  double sums[kGroup] = {};
  for (int64_t start = 0; start < task.length; start += kBlock<T>) {
    const int64_t block = std::min(task.length - start, kBlock<T>);
    for (int64_t p = 0; p < count; ++p) {
      sums[p] += block_sum(cond + p * task.cond_prompt_stride + start, uncond + start, block);
    }
  }
  auto* norm = static_cast<accumulate_t<T>*>(task.norm) + prompt * task.seeds + seed;
  for (int64_t p = 0; p < count; ++p) {
    norm[p * task.seeds] = static_cast<accumulate_t<T>>(std::sqrt(sums[p]));
  }
}

}  // namespace

void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row) {
  const int64_t group = task.uncond_prompt_stride == 0 ? kGroup : 1;
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    for (int64_t r = first_row; r < last_row;) {
      const int64_t seed = r / task.prompts, prompt = r % task.prompts;
      const int64_t count = std::min({last_row - r, task.prompts - prompt, group});
      norms<T>(task, seed, prompt, count);
      r += count;
    }
  });
}

}  // namespace dori::cpu
