// mask[o, i] = |weight[o, i]| * act_norm[i] is among the largest of row o, and above the base's.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

// Strides count elements. Rows are contiguous. Norms are float (double for float64 weights).
struct WandaMask {
  DType dtype;
  const void* weight;
  const void* act_norm;
  const void* base_act_norm;                 // null: no comparison
  bool* mask;                                // [rows, columns], contiguous
  int64_t rows, columns, row_stride, count;  // count: weights per row, at most columns
};

namespace cpu {
void wanda_mask(const WandaMask& task, int64_t first_row, int64_t last_row);
}

}  // namespace dori
