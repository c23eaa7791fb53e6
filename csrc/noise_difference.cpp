// dori::noise_difference, dori::noise_difference_step and dori::noise_cosine: checks, memory,
// registration. Kernels: cpu/ and cuda/ of the same name.
#include "noise_difference.h"

#include "tensors.h"

#include <cmath>
#include <tuple>

namespace dori {
namespace {

constexpr const char* kOp = "noise_difference";
constexpr const char* kStepOp = "noise_difference_step";
constexpr const char* kCosineOp = "noise_cosine";

void check(const Tensor& eps_cond, const Tensor& eps_uncond) {
  STD_TORCH_CHECK(eps_cond.dim() >= 2, kOp, ": eps_cond must be [P, S, *], got ", eps_cond.dim(),
                  " dimensions");
  const int64_t shift = eps_cond.dim() - eps_uncond.dim();
  bool same = shift == 0 || shift == 1;
  for (int64_t d = 0; same && d < eps_uncond.dim(); ++d) {
    same = eps_uncond.size(d) == eps_cond.size(d + shift);
  }
  STD_TORCH_CHECK(same, kOp, ": eps_uncond must have the shape of eps_cond, or that without P");
  STD_TORCH_CHECK(eps_cond.scalar_type() == eps_uncond.scalar_type(), kOp,
                  ": eps_uncond must have the dtype of eps_cond");
  STD_TORCH_CHECK(same_device(eps_cond, eps_uncond), kOp,
                  ": eps_uncond must be on the device of eps_cond");
}

// Calls launch(task) and returns the norms that it wrote.
template <class Launch>
Tensor with_task(const Tensor& eps_cond, const Tensor& eps_uncond, const Launch& launch) {
  check(eps_cond, eps_uncond);
  const bool shared = eps_uncond.dim() < eps_cond.dim();
  const Tensor cond = with_contiguous_rows(eps_cond, 2);
  const Tensor uncond = with_contiguous_rows(eps_uncond, shared ? 1 : 2);
  const DType dtype = kernel_dtype(kOp, cond);
  Tensor norm =
      torch::stable::new_empty(cond, {cond.size(0), cond.size(1)}, accumulate_dtype(dtype));
  const NoiseDifference task{.dtype = dtype,
                             .cond = cond.const_data_ptr(),
                             .uncond = uncond.const_data_ptr(),
                             .norm = norm.mutable_data_ptr(),
                             .prompts = cond.size(0),
                             .seeds = cond.size(1),
                             .length = elements_from(cond, 2),
                             .cond_prompt_stride = cond.stride(0),
                             .cond_seed_stride = cond.stride(1),
                             .uncond_prompt_stride = shared ? 0 : uncond.stride(0),
                             .uncond_seed_stride = uncond.stride(shared ? 0 : 1)};
  if (norm.numel() > 0) launch(task);
  return norm;
}

Tensor noise_difference_cpu(const Tensor& eps_cond, const Tensor& eps_uncond) {
  return with_task(eps_cond, eps_uncond, [](const NoiseDifference& task) {
    parallel_rows(task.prompts * task.seeds, task.length,
                  [&](int64_t first, int64_t last) { cpu::noise_difference(task, first, last); });
  });
}

void check_step(const Tensor& eps_cond, const Tensor& latents, double alpha_bar,
                double alpha_bar_prev) {
  bool same = latents.dim() == eps_cond.dim();
  for (int64_t d = 0; same && d < latents.dim(); ++d) same = latents.size(d) == eps_cond.size(d);
  STD_TORCH_CHECK(
      same && latents.scalar_type() == eps_cond.scalar_type() && same_device(latents, eps_cond),
      kStepOp, ": latents must have the shape, dtype and device of eps_cond");
  STD_TORCH_CHECK(0 < alpha_bar && alpha_bar <= 1 && 0 <= alpha_bar_prev && alpha_bar_prev <= 1,
                  kStepOp, ": alpha_bar must be in (0, 1] and alpha_bar_prev in [0, 1]");
}

std::tuple<Tensor, Tensor> noise_difference_step_cpu(const Tensor& eps_cond,
                                                     const Tensor& eps_uncond,
                                                     const Tensor& latents_any, double guidance,
                                                     double alpha_bar, double alpha_bar_prev) {
  check_step(eps_cond, latents_any, alpha_bar, alpha_bar_prev);
  const Tensor latents = with_contiguous_rows(latents_any, 2);
  Tensor latents_prev = torch::stable::new_empty(latents, latents.sizes());
  const double keep = std::sqrt(alpha_bar_prev / alpha_bar);
  Tensor norm = with_task(eps_cond, eps_uncond, [&](const NoiseDifference& difference) {
    const NoiseDifferenceStep task{
        .difference = difference,
        .latents = latents.const_data_ptr(),
        .latents_prev = latents_prev.mutable_data_ptr(),
        .latents_prompt_stride = latents.stride(0),
        .latents_seed_stride = latents.stride(1),
        .guidance = guidance,
        .keep = keep,
        .add = std::sqrt(1 - alpha_bar_prev) - keep * std::sqrt(1 - alpha_bar)};
    parallel_rows(
        difference.prompts * difference.seeds, difference.length,
        [&](int64_t first, int64_t last) { cpu::noise_difference_step(task, first, last); });
  });
  return {norm, latents_prev};
}

Tensor noise_cosine_cpu(const Tensor& eps_cond, const Tensor& eps_uncond) {
  STD_TORCH_CHECK(eps_cond.dim() >= 3, kCosineOp, ": eps_cond must be [P, S, C, *], got ",
                  eps_cond.dim(), " dimensions");
  return with_task(eps_cond, eps_uncond, [&](const NoiseDifference& difference) {
    const NoiseCosine task{.difference = difference,
                           .channels = eps_cond.size(2),
                           .positions = elements_from(eps_cond, 3)};
    parallel_rows(difference.prompts * difference.seeds, difference.length,
                  [&](int64_t first, int64_t last) { cpu::noise_cosine(task, first, last); });
  });
}

#ifdef DORI_CUDA
Tensor noise_difference_cuda(const Tensor& eps_cond, const Tensor& eps_uncond) {
  return with_task(eps_cond, eps_uncond, [&](const NoiseDifference& task) {
    on_current_stream(kOp, eps_cond,
                      [&](cudaStream_t stream) { return cuda::noise_difference(task, stream); });
  });
}
#endif

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("noise_difference", TORCH_BOX(&dori::noise_difference_cpu));
  m.impl("noise_difference_step", TORCH_BOX(&dori::noise_difference_step_cpu));
  m.impl("noise_cosine", TORCH_BOX(&dori::noise_cosine_cpu));
}
#ifdef DORI_CUDA
STABLE_TORCH_LIBRARY_IMPL(dori, CUDA, m) {
  m.impl("noise_difference_cuda", TORCH_BOX(&dori::noise_difference_cuda));
}
#endif
