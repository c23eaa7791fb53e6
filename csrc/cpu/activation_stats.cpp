#include "activation_stats.h"

#include "cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dori::cpu {
namespace {

// A block of a tile is read from memory once and stays in the cache for the second pass over it,
// which takes deviations from the block's own mean: exact whatever the mean is. Everything is
// summed in double; the loop waits for memory, not for arithmetic.
constexpr int64_t kBlock = 64;
constexpr int kUnroll = 8;

// Running totals of the neurons of a tile. The mean is kept as a sum, so that an infinity stays
// one.
struct Totals {
  double *sum, *m2, *abs_sum, *abs_max, *sum_sq;
};

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
      abs_max = magnitude > abs_max ? magnitude : abs_max;
    }
    to.sum[j] += sum;
    to.abs_sum[j] += abs_sum;
    to.sum_sq[j] += sum_sq;
    to.abs_max[j] = abs_max;
  }
}

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

// Adds rows [done, done + rows) of a tile to the totals (Chan, Golub and LeVeque 1979).
template <class T>
DORI_INLINE void add_block(const Totals& totals, const T* x, int64_t stride, int64_t width,
                           int64_t done, int64_t rows) {
  double sum[kStatsTile] = {}, mean[kStatsTile], m2[kStatsTile] = {};
  const Totals block{sum, m2, totals.abs_sum, totals.abs_max, totals.sum_sq};
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
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const double shift = mean[j] - totals.sum[j] / std::max(before, 1.0);
    totals.m2[j] += m2[j] + shift * shift * weight;
    totals.sum[j] += sum[j];
  }
}

// target_clones does not go with templates.
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
    // Comparisons skip a NaN; the sum does not.
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
