// Per column of x [rows, neurons]: mean, m2 (sum of squared deviations), mean of magnitudes,
// largest magnitude, sum of squares.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

// Strides count elements; rows of x are contiguous.
struct ActivationStats {
  DType dtype;
  const void* x;
  double* stats;  // [5, neurons], contiguous, in the order above
  int64_t rows, neurons, row_stride;
};

// Neurons are split into tiles of this many; the split does not influence results.
constexpr int64_t kStatsTile = 64;

namespace cpu {
void activation_stats(const ActivationStats& task, int64_t first_tile, int64_t last_tile);
}

}  // namespace dori
