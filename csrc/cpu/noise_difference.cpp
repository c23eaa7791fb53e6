#include "noise_difference.h"

#include "cpu/simd.h"
#include "cpu/sum_of_squares.h"

#include <algorithm>
#include <cmath>

namespace dori::cpu {
namespace {

// Number of prompts that use a block of a shared eps_uncond before the next block is read.
constexpr int64_t kGroup = 64;

// Norms of one seed for `count` prompts from `prompt` on, block by block. More than one prompt only
// if they share their eps_uncond, whose block then stays in the L1 cache for all of them.
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
      sums[p] += sum_of_squares(cond + p * task.cond_prompt_stride + start, uncond + start, block);
    }
  }
  // norm is [prompts, seeds], so a seed's norms lie `seeds` apart
  auto* norm = static_cast<accumulate_t<T>*>(task.norm) + prompt * task.seeds + seed;
  for (int64_t p = 0; p < count; ++p) {
    norm[p * task.seeds] = static_cast<accumulate_t<T>>(std::sqrt(sums[p]));
  }
}

// Coefficients of the guided step, see NoiseDifferenceStep.
template <class A>
struct Mix {
  A guidance, keep, add;
};

// The guided step over one block: latents_prev = keep x_t + add guided, rounded once.
template <class T>
DORI_INLINE void denoise(T* to, const T* cond, const T* uncond, const T* from,
                         Mix<accumulate_t<T>> mix, int64_t length) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const auto base = load(uncond[i]);
    const auto guided = base + mix.guidance * (load(cond[i]) - base);
    store(to[i], mix.keep * load(from[i]) + mix.add * guided);
  }
}

// Positions per block, whose three sums lie on the stack: 3 KiB in float.
constexpr int64_t kPositions = 256;

// Sum over positions of the cosine over channels. The vector loop runs over positions, which are
// neighbors in memory; the channels of one position are `positions` apart.
template <class T>
DORI_INLINE double sum_of_cosines(const T* cond, const T* uncond, int64_t channels,
                                  int64_t positions) {
  using A = accumulate_t<T>;
  // A vector shorter than this counts as this long, so that nothing is divided by 0.
  constexpr A kShortest = A(1e-8);
  double total = 0;
  for (int64_t start = 0; start < positions; start += kPositions) {
    const int64_t block = std::min(positions - start, kPositions);
    A dot[kPositions] = {}, length[kPositions] = {}, distance[kPositions] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const T* a = cond + c * positions + start;
      const T* b = uncond + c * positions + start;
#pragma omp simd
      for (int64_t i = 0; i < block; ++i) {
        const A base = load(b[i]), difference = load(a[i]) - base;
        dot[i] += base * difference;
        length[i] += base * base;
        distance[i] += difference * difference;
      }
    }
    // a block's cosines are summed in A, the blocks in double
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < block; ++i) {
      const A u = std::sqrt(length[i]), d = std::sqrt(distance[i]);
      sum += dot[i] / ((u < kShortest ? kShortest : u) * (d < kShortest ? kShortest : d));
    }
    total += sum;
  }
  return total;
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_ROWS(T)                                                                         \
  DORI_SIMD void denoise_block(T* to, const T* cond, const T* uncond, const T* from,         \
                               Mix<accumulate_t<T>> mix, int64_t n) {                        \
    denoise(to, cond, uncond, from, mix, n);                                                 \
  }                                                                                          \
  DORI_SIMD double cosine_row(const T* cond, const T* uncond, int64_t channels, int64_t n) { \
    return sum_of_cosines(cond, uncond, channels, n);                                        \
  }
DORI_ROWS(float)
DORI_ROWS(double)
DORI_ROWS(bfloat16)
DORI_ROWS(float16)
#undef DORI_ROWS

// Block by block (16 KiB of each input), so that the step finds in the L1 cache what the norm read.
template <class T>
double norm_and_denoise(T* to, const T* cond, const T* uncond, const T* from,
                        Mix<accumulate_t<T>> mix, int64_t length) {
  double total = 0;
  for (int64_t i = 0; i < length; i += kBlock<T>) {
    const int64_t block = std::min(length - i, kBlock<T>);
    total += sum_of_squares(cond + i, uncond + i, block);
    denoise_block(to + i, cond + i, uncond + i, from + i, mix, block);
  }
  return std::sqrt(total);
}

// Row r is seed r % seeds of prompt r / seeds; a stride of 0 repeats a row.
template <class T>
const T* row_of(const void* data, int64_t r, int64_t seeds, int64_t prompt_stride,
                int64_t seed_stride) {
  return static_cast<const T*>(data) + r / seeds * prompt_stride + r % seeds * seed_stride;
}

template <class T>
const T* cond_row(const NoiseDifference& task, int64_t r) {
  return row_of<T>(task.cond, r, task.seeds, task.cond_prompt_stride, task.cond_seed_stride);
}

template <class T>
const T* uncond_row(const NoiseDifference& task, int64_t r) {
  return row_of<T>(task.uncond, r, task.seeds, task.uncond_prompt_stride, task.uncond_seed_stride);
}

}  // namespace

void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row) {
  const int64_t group = task.uncond_prompt_stride == 0 ? kGroup : 1;
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    // Here rows are ordered by seed, so that neighbors share their eps_uncond.
    for (int64_t r = first_row; r < last_row;) {
      const int64_t seed = r / task.prompts, prompt = r % task.prompts;
      const int64_t count = std::min({last_row - r, task.prompts - prompt, group});
      norms<T>(task, seed, prompt, count);
      r += count;
    }
  });
}

void noise_difference_step(const NoiseDifferenceStep& task, int64_t first_row, int64_t last_row) {
  const NoiseDifference& difference = task.difference;
  dispatch<Types>(difference.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    const Mix<A> mix{static_cast<A>(task.guidance), static_cast<A>(task.keep),
                     static_cast<A>(task.add)};
    for (int64_t r = first_row; r < last_row; ++r) {
      const double norm =
          norm_and_denoise(static_cast<T*>(task.latents_prev) + r * difference.length,
                           cond_row<T>(difference, r), uncond_row<T>(difference, r),
                           row_of<T>(task.latents, r, difference.seeds, task.latents_prompt_stride,
                                     task.latents_seed_stride),
                           mix, difference.length);
      static_cast<A*>(difference.norm)[r] = static_cast<A>(norm);
    }
  });
}

void noise_cosine(const NoiseCosine& task, int64_t first_row, int64_t last_row) {
  const NoiseDifference& difference = task.difference;
  dispatch<Types>(difference.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    for (int64_t r = first_row; r < last_row; ++r) {
      const double sum = cosine_row(cond_row<T>(difference, r), uncond_row<T>(difference, r),
                                    task.channels, task.positions);
      static_cast<A*>(difference.norm)[r] =
          static_cast<A>(sum / static_cast<double>(task.positions));
    }
  });
}

}  // namespace dori::cpu
