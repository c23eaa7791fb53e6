// One step of Adam on many independent problems: each has its own step count and may stand still.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

struct Adam {
  double lr, beta1, beta2, eps, weight_decay;
};

// Strides of [problems, tokens, dim], counting elements.
struct Layout {
  int64_t problem, token, element;
};

struct EmbeddingStep {
  DType dtype;
  void* params;
  const void* grad;
  void* exp_avg;  // moments are float (double for float64 params)
  void* exp_avg_sq;
  const int64_t* step;  // [problems], steps taken so far, contiguous
  const bool* active;   // [problems], contiguous, or null: all
  const bool* frozen;   // tokens contiguous, or null: none
  int64_t problems, tokens, dim;
  Layout params_layout, grad_layout, exp_avg_layout, exp_avg_sq_layout;
  int64_t frozen_problem_stride;
  Adam adam;
};

namespace cpu {
// Rows are (problem, token). Leaves the step counts alone.
void embedding_step(const EmbeddingStep& task, int64_t first_row, int64_t last_row);
}  // namespace cpu

}  // namespace dori
