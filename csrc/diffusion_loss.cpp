// dori::add_noise, dori::diffusion_loss and dori::diffusion_loss_bwd: checks, memory, registration.
// Kernels: cpu/ of the same name.
#include "diffusion_loss.h"

#include "tensors.h"

#include <limits>

namespace dori {
namespace {

constexpr const char* kAddNoise = "add_noise";
constexpr const char* kLoss = "diffusion_loss";

void check_like(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  bool same = x.dim() == like.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == like.size(d);
  STD_TORCH_CHECK(same && x.dim() >= 2, op, ": ", name, " must be [P, B, *] as the others");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), op, ": ", name, " has another dtype");
  STD_TORCH_CHECK(same_device(x, like), op, ": ", name, " is on another device");
}

// One number per leading index of x, in x's accumulation dtype.
Tensor check_numbers(const char* op, const char* name, const Tensor& numbers, const Tensor& x,
                     int64_t dims) {
  bool fits = numbers.dim() == dims;
  for (int64_t d = 0; fits && d < dims; ++d) fits = numbers.size(d) == x.size(d);
  STD_TORCH_CHECK(fits, op, ": ", name, " must have the ", dims, " leading dimensions of eps");
  STD_TORCH_CHECK(numbers.scalar_type() == accumulate_dtype(kernel_dtype(op, x)), op, ": ", name,
                  " must be float32 (float64 for float64 inputs)");
  STD_TORCH_CHECK(same_device(numbers, x), op, ": ", name, " is on another device");
  return with_contiguous_rows(numbers, 0);
}

Tensor add_noise_cpu(const Tensor& x0_any, const Tensor& eps_any, const Tensor& alpha_bar_any) {
  const Tensor eps = with_contiguous_rows(eps_any, 2), x0 = with_contiguous_rows(x0_any, 1);
  STD_TORCH_CHECK(eps.dim() >= 2 && x0.dim() == eps.dim() - 1, kAddNoise,
                  ": x0 must be [P, *] of eps [P, B, *]");
  for (int64_t d = 0; d < x0.dim(); ++d) {
    STD_TORCH_CHECK(x0.size(d) == eps.size(d == 0 ? 0 : d + 1), kAddNoise,
                    ": x0 must be [P, *] of eps [P, B, *]");
  }
  STD_TORCH_CHECK(x0.scalar_type() == eps.scalar_type() && same_device(x0, eps), kAddNoise,
                  ": x0 must have the dtype and device of eps");
  const Tensor alpha_bar = check_numbers(kAddNoise, "alpha_bar", alpha_bar_any, eps, 2);
  Tensor x_t = torch::stable::new_empty(eps, eps.sizes());
  const AddNoise task{.dtype = kernel_dtype(kAddNoise, eps),
                      .x0 = x0.const_data_ptr(),
                      .eps = eps.const_data_ptr(),
                      .alpha_bar = alpha_bar.const_data_ptr(),
                      .x_t = x_t.mutable_data_ptr(),
                      .problems = eps.size(0),
                      .draws = eps.size(1),
                      .length = elements_from(eps, 2),
                      .x0_problem_stride = x0.stride(0),
                      .eps_problem_stride = eps.stride(0),
                      .eps_draw_stride = eps.stride(1)};
  parallel_rows(task.problems * task.draws, task.length,
                [&](int64_t first, int64_t last) { cpu::add_noise(task, first, last); });
  return x_t;
}

// Both must have contiguous rows.
DiffusionLoss loss_task(const Tensor& eps_pred, const Tensor& eps) {
  check_like(kLoss, "eps", eps, eps_pred);
  return {.dtype = kernel_dtype(kLoss, eps),
          .eps_pred = eps_pred.const_data_ptr(),
          .eps = eps.const_data_ptr(),
          .problems = eps.size(0),
          .draws = eps.size(1),
          .length = elements_from(eps, 2),
          .pred_problem_stride = eps_pred.stride(0),
          .pred_draw_stride = eps_pred.stride(1),
          .eps_problem_stride = eps.stride(0),
          .eps_draw_stride = eps.stride(1)};
}

template <class A>
void mean_per_problem(const DiffusionLoss& task, const std::vector<double>& sums, A* loss) {
  const auto count = static_cast<double>(task.draws * task.length);
  for (int64_t p = 0; p < task.problems; ++p) {
    double total = 0;
    for (int64_t b = 0; b < task.draws; ++b) total += sums[p * task.draws + b];
    // the mean of nothing is NaN, as in torch
    loss[p] = static_cast<A>(count > 0 ? total / count : std::numeric_limits<double>::quiet_NaN());
  }
}

Tensor diffusion_loss_cpu(const Tensor& eps_pred_any, const Tensor& eps_any) {
  const Tensor eps_pred = with_contiguous_rows(eps_pred_any, 2);
  const Tensor eps = with_contiguous_rows(eps_any, 2);
  const DiffusionLoss task = loss_task(eps_pred, eps);
  std::vector<double> sums(task.problems * task.draws);
  parallel_rows(task.problems * task.draws, task.length, [&](int64_t first, int64_t last) {
    cpu::diffusion_loss(task, sums.data(), first, last);
  });
  Tensor loss = torch::stable::new_empty(eps_pred, {task.problems}, accumulate_dtype(task.dtype));
  if (task.dtype == DType::float64) {
    mean_per_problem(task, sums, static_cast<double*>(loss.mutable_data_ptr()));
  } else {
    mean_per_problem(task, sums, static_cast<float*>(loss.mutable_data_ptr()));
  }
  return loss;
}

Tensor diffusion_loss_bwd_cpu(const Tensor& rate_any, const Tensor& eps_pred_any,
                              const Tensor& eps_any) {
  const Tensor eps_pred = with_contiguous_rows(eps_pred_any, 2);
  const Tensor eps = with_contiguous_rows(eps_any, 2);
  const DiffusionLoss task = loss_task(eps_pred, eps);
  const Tensor rate = check_numbers(kLoss, "rate", rate_any, eps, 1);
  Tensor to_pred = torch::stable::new_empty(eps_pred, eps_pred.sizes());
  parallel_rows(task.problems * task.draws, task.length, [&](int64_t first, int64_t last) {
    cpu::diffusion_loss_bwd(task, rate.const_data_ptr(), to_pred.mutable_data_ptr(), first, last);
  });
  return to_pred;
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("add_noise", TORCH_BOX(&dori::add_noise_cpu));
  m.impl("diffusion_loss", TORCH_BOX(&dori::diffusion_loss_cpu));
  m.impl("diffusion_loss_bwd", TORCH_BOX(&dori::diffusion_loss_bwd_cpu));
}
