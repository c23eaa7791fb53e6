#include "activation_stats.h"

#include "cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dori::cpu {
namespace {

// A block is 64 rows of a tile of 64 neurons. It is read from memory once and stays in the cache
// for a second pass, which takes deviations from the block's own mean, so that m2 keeps its digits
// whatever the mean is. Everything is summed in double; the loop waits for memory, not arithmetic.
constexpr int64_t kBlock = 64;
// Rows per step: a neuron's totals are then loaded and stored once for eight values.
constexpr int kUnroll = 8;

// Running totals of the neurons of a tile. The mean is kept as a sum, so that an infinity stays
// an infinity.
struct Totals {
  double *sum, *m2, *abs_sum, *abs_max, *sum_sq;
};

// First pass. Neighboring neurons are neighbors in memory, so the vector loop runs over neurons j,
// each of which sums its own rows in order.
template <class T, int Rows>
DORI_INLINE void add_rows(const Totals& to, const T* x, int64_t stride, int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    double sum = 0, abs_sum = 0, sum_sq = 0, abs_max = to.abs_max[j];
    for (int r = 0; r < Rows; ++r) {
      const double value = load(x[r * stride + j]);
      const double magnitude = std::fabs(value);
      sum += value;
      abs_sum += magnitude;
      sum_sq += value * value;
      // a comparison skips a NaN; finish() puts it back
      abs_max = magnitude > abs_max ? magnitude : abs_max;
    }
    to.sum[j] += sum;
    to.abs_sum[j] += abs_sum;
    to.sum_sq[j] += sum_sq;
    to.abs_max[j] = abs_max;
  }
}

// Second pass, over the same rows in the cache.
template <class T, int Rows>
DORI_INLINE void add_deviations(double* m2, const double* mean, const T* x, int64_t stride,
                                int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    double squares = 0;
    for (int r = 0; r < Rows; ++r) {
      const double deviation = load(x[r * stride + j]) - mean[j];
      squares += deviation * deviation;
    }
    m2[j] += squares;
  }
}

// Adds rows [done, done + rows) of a tile to the totals. Sums add up; m2 also takes the distance of
// both means, m2 += m2_block + shift^2 done rows / (done + rows) (Chan, Golub and LeVeque 1979).
template <class T>
DORI_INLINE void add_block(const Totals& totals, const T* x, int64_t stride, int64_t width,
                           int64_t done, int64_t rows) {
  double sum[kStatsTile] = {}, mean[kStatsTile], m2[kStatsTile] = {};
  const Totals block{sum, m2, totals.abs_sum, totals.abs_max, totals.sum_sq};
  // whole steps of eight rows, then the rest one by one
  int64_t r = 0;
  for (; r + kUnroll <= rows; r += kUnroll) {
    add_rows<T, kUnroll>(block, x + r * stride, stride, width);
  }
  for (; r < rows; ++r) add_rows<T, 1>(block, x + r * stride, stride, width);

  for (int64_t j = 0; j < width; ++j) mean[j] = sum[j] / rows;
  r = 0;
  for (; r + kUnroll <= rows; r += kUnroll) {
    add_deviations<T, kUnroll>(m2, mean, x + r * stride, stride, width);
  }
  for (; r < rows; ++r) add_deviations<T, 1>(m2, mean, x + r * stride, stride, width);

  const double before = static_cast<double>(done), now = static_cast<double>(rows);
  const double weight = before * (now / (before + now));
  // before the first block, sum, weight and so the shift's share are 0
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const double shift = mean[j] - totals.sum[j] / std::max(before, 1.0);
    totals.m2[j] += m2[j] + shift * shift * weight;
    totals.sum[j] += sum[j];
  }
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_BLOCK(T)                                                                   \
  DORI_SIMD void block(const Totals& totals, const T* x, int64_t stride, int64_t width, \
                       int64_t done, int64_t rows) {                                    \
    add_block(totals, x, stride, width, done, rows);                                    \
  }
DORI_BLOCK(float)
DORI_BLOCK(double)
DORI_BLOCK(bfloat16)
DORI_BLOCK(float16)
#undef DORI_BLOCK

void finish(const Totals& totals, int64_t width, int64_t rows) {
  const double count = static_cast<double>(std::max<int64_t>(1, rows));
  for (int64_t j = 0; j < width; ++j) {
    // the sum of magnitudes is NaN if any value was
    if (std::isnan(totals.abs_sum[j])) totals.abs_max[j] = std::numeric_limits<double>::quiet_NaN();
    totals.sum[j] /= count;
    totals.abs_sum[j] /= count;
  }
}

}  // namespace

void activation_stats(const ActivationStats& task, int64_t first_tile, int64_t last_tile) {
  const auto totals_of = [&](int64_t n) {
    double* at = task.stats + n;
    return Totals{at, at + task.neurons, at + 2 * task.neurons, at + 3 * task.neurons,
                  at + 4 * task.neurons};
  };
  const int64_t begin = first_tile * kStatsTile;
  const int64_t end = std::min(last_tile * kStatsTile, task.neurons);
  for (int row = 0; row < 5; ++row) {
    std::fill(task.stats + row * task.neurons + begin, task.stats + row * task.neurons + end, 0.0);
  }
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    // blocks of rows outside, tiles inside: a thread walks each row along all of its columns
    for (int64_t r = 0; r < task.rows; r += kBlock) {
      for (int64_t n = begin; n < end; n += kStatsTile) {
        block(totals_of(n), static_cast<const T*>(task.x) + r * task.row_stride + n,
              task.row_stride, std::min(kStatsTile, end - n), r, std::min(kBlock, task.rows - r));
      }
    }
  });
  finish(totals_of(begin), end - begin, task.rows);
}

}  // namespace dori::cpu
