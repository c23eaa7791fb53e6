#include "embedding_step.h"

#include "cpu/simd.h"

#include <cmath>

namespace dori::cpu {
namespace {

// Rates of Adam at one step count, prepared so that an element costs one root and one division.
template <class A>
struct Rates {
  A to_avg, keep_sq, to_sq, inverse_root_bias, eps, step_size, keep_param;
};

template <class A>
Rates<A> rates_at(const Adam& adam, int64_t step) {
  // in double, as torch.optim computes them; 1 - beta^t cancels for small t
  const auto t = static_cast<double>(step);
  return {.to_avg = static_cast<A>(1 - adam.beta1),
          .keep_sq = static_cast<A>(adam.beta2),
          .to_sq = static_cast<A>(1 - adam.beta2),
          .inverse_root_bias = static_cast<A>(1 / std::sqrt(1 - std::pow(adam.beta2, t))),
          .eps = static_cast<A>(adam.eps),
          .step_size = static_cast<A>(adam.lr / (1 - std::pow(adam.beta1, t))),
          .keep_param = static_cast<A>(1 - adam.lr * adam.weight_decay)};
}

// One token of one problem: its four vectors of `dim` elements and their strides.
template <class T>
struct Row {
  T* params;
  const T* grad;
  accumulate_t<T>* exp_avg;
  accumulate_t<T>* exp_avg_sq;
  int64_t dim, params_stride, grad_stride, exp_avg_stride, exp_avg_sq_stride;
};

template <class T, class A>
DORI_INLINE void update(T* params, const T* grad, A* exp_avg, A* exp_avg_sq, const Row<T>& row,
                        const Rates<A>& adam, int64_t p, int64_t g, int64_t m, int64_t v) {
#pragma omp simd
  for (int64_t i = 0; i < row.dim; ++i) {
    const A slope = load(grad[i * g]);
    const A mean = exp_avg[i * m] + adam.to_avg * (slope - exp_avg[i * m]);
    const A square = adam.keep_sq * exp_avg_sq[i * v] + adam.to_sq * slope * slope;
    // sqrt(v / (1 - beta2^t)) + eps
    const A denominator = std::sqrt(square) * adam.inverse_root_bias + adam.eps;
    exp_avg[i * m] = mean;
    exp_avg_sq[i * v] = square;
    // decay first, decoupled; params round once, the moments stay in A
    store(params[i * p],
          adam.keep_param * load(params[i * p]) - adam.step_size * mean / denominator);
  }
}

template <class T>
DORI_INLINE void step_row(const Row<T>& row, const Rates<accumulate_t<T>>& adam) {
  const auto step = [&](int64_t p, int64_t g, int64_t m, int64_t v) __attribute__((always_inline)) {
    update(row.params, row.grad, row.exp_avg, row.exp_avg_sq, row, adam, p, g, m, v);
  };
  // Constant strides of 1 give vector loads; the other copy of the loop serves any strides.
  if (row.params_stride == 1 && row.grad_stride == 1 && row.exp_avg_stride == 1 &&
      row.exp_avg_sq_stride == 1) {
    step(1, 1, 1, 1);
  } else {
    step(row.params_stride, row.grad_stride, row.exp_avg_stride, row.exp_avg_sq_stride);
  }
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_ROW(T) \
  DORI_SIMD void one_row(const Row<T>& r, const Rates<accumulate_t<T>>& a) { step_row(r, a); }
DORI_ROW(float)
DORI_ROW(double)
DORI_ROW(bfloat16)
DORI_ROW(float16)
#undef DORI_ROW

}  // namespace

void embedding_step(const EmbeddingStep& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    const auto start = [](const Layout& layout, int64_t p, int64_t t) {
      return p * layout.problem + t * layout.token;
    };
    Rates<A> rates{};
    int64_t rates_of = -1;
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t p = r / task.tokens, t = r % task.tokens;
      // an inactive problem or a frozen token is not touched
      if (task.active && !task.active[p]) continue;
      if (task.frozen && task.frozen[p * task.frozen_problem_stride + t]) continue;
      // the powers of beta once per problem, not once per token
      if (rates_of != p) {
        rates = rates_at<A>(task.adam, task.step[p] + 1);
        rates_of = p;
      }
      one_row(Row<T>{.params = static_cast<T*>(task.params) + start(task.params_layout, p, t),
                     .grad = static_cast<const T*>(task.grad) + start(task.grad_layout, p, t),
                     .exp_avg = static_cast<A*>(task.exp_avg) + start(task.exp_avg_layout, p, t),
                     .exp_avg_sq =
                         static_cast<A*>(task.exp_avg_sq) + start(task.exp_avg_sq_layout, p, t),
                     .dim = task.dim,
                     .params_stride = task.params_layout.element,
                     .grad_stride = task.grad_layout.element,
                     .exp_avg_stride = task.exp_avg_layout.element,
                     .exp_avg_sq_stride = task.exp_avg_sq_layout.element},
              rates);
    }
  });
}

}  // namespace dori::cpu
