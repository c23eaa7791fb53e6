// x_t = sqrt(a) x_0 + sqrt(1 - a) eps, the mean squared error of a prediction of eps, its gradient.
// Rows of `length` consecutive elements, one per (problem, draw); outputs are contiguous.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

// Strides count elements.
struct AddNoise {
  DType dtype;
  const void* x0;         // a row per problem, shared by its draws
  const void* eps;        // a row per (problem, draw)
  const void* alpha_bar;  // [problems, draws], contiguous, float (double for float64 x0)
  void* x_t;
  int64_t problems, draws, length;
  int64_t x0_problem_stride, eps_problem_stride, eps_draw_stride;
};

struct DiffusionLoss {
  DType dtype;
  const void* eps_pred;
  const void* eps;
  int64_t problems, draws, length;
  int64_t pred_problem_stride, pred_draw_stride, eps_problem_stride, eps_draw_stride;
};

namespace cpu {
void add_noise(const AddNoise& task, int64_t first_row, int64_t last_row);
// sums[row] = sum of squared differences
void diffusion_loss(const DiffusionLoss& task, double* sums, int64_t first_row, int64_t last_row);
// to_pred[row] = rate[problem] * (eps_pred - eps); rate is float (double for float64)
void diffusion_loss_bwd(const DiffusionLoss& task, const void* rate, void* to_pred,
                        int64_t first_row, int64_t last_row);
}  // namespace cpu

}  // namespace dori
