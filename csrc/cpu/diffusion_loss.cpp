#include "diffusion_loss.h"

#include "cpu/simd.h"
#include "cpu/sum_of_squares.h"

#include <cmath>

namespace dori::cpu {
namespace {

// x_t = signal x_0 + noise eps over one row; arithmetic in A, rounded once by store.
template <class T, class A>
DORI_INLINE void mix(T* x_t, const T* x0, const T* eps, A signal, A noise, int64_t length) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) store(x_t[i], signal * load(x0[i]) + noise * load(eps[i]));
}

// The gradient of the loss over one row: rate (eps_pred - eps).
template <class T, class A>
DORI_INLINE void scaled_difference(T* y, const T* a, const T* b, A rate, int64_t length) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) store(y[i], rate * (load(a[i]) - load(b[i])));
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_ROWS(T)                                                                        \
  DORI_SIMD void mix_row(T* x_t, const T* x0, const T* eps, accumulate_t<T> signal,         \
                         accumulate_t<T> noise, int64_t n) {                                \
    mix(x_t, x0, eps, signal, noise, n);                                                    \
  }                                                                                         \
  DORI_SIMD void slope_row(T* y, const T* a, const T* b, accumulate_t<T> rate, int64_t n) { \
    scaled_difference(y, a, b, rate, n);                                                    \
  }
DORI_ROWS(float)
DORI_ROWS(double)
DORI_ROWS(bfloat16)
DORI_ROWS(float16)
#undef DORI_ROWS

// Row r is draw r % draws of problem r / draws.
template <class T>
const T* pred_row(const DiffusionLoss& task, int64_t r) {
  return static_cast<const T*>(task.eps_pred) + r / task.draws * task.pred_problem_stride +
         r % task.draws * task.pred_draw_stride;
}

template <class T>
const T* eps_row(const DiffusionLoss& task, int64_t r) {
  return static_cast<const T*>(task.eps) + r / task.draws * task.eps_problem_stride +
         r % task.draws * task.eps_draw_stride;
}

}  // namespace

void add_noise(const AddNoise& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t p = r / task.draws, b = r % task.draws;
      // both roots once per row; x0 has no draw stride, all draws read one image
      const A alpha_bar = static_cast<const A*>(task.alpha_bar)[r];
      mix_row(
          static_cast<T*>(task.x_t) + r * task.length,
          static_cast<const T*>(task.x0) + p * task.x0_problem_stride,
          static_cast<const T*>(task.eps) + p * task.eps_problem_stride + b * task.eps_draw_stride,
          std::sqrt(alpha_bar), std::sqrt(1 - alpha_bar), task.length);
    }
  });
}

void diffusion_loss(const DiffusionLoss& task, double* sums, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    // one sum per row, in double; mean_per_problem adds a problem's draws in order
    for (int64_t r = first_row; r < last_row; ++r) {
      sums[r] = sum_of_squares_of_row(pred_row<T>(task, r), eps_row<T>(task, r), task.length);
    }
  });
}

void diffusion_loss_bwd(const DiffusionLoss& task, const void* rate, void* to_pred,
                        int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    for (int64_t r = first_row; r < last_row; ++r) {
      slope_row(static_cast<T*>(to_pred) + r * task.length, pred_row<T>(task, r),
                eps_row<T>(task, r), static_cast<const accumulate_t<T>*>(rate)[r / task.draws],
                task.length);
    }
  });
}

}  // namespace dori::cpu
