// dori::noise_difference: checks, memory, registration. Kernels: cpu/ and cuda/ of the same name.
#include "noise_difference.h"

#include "tensors.h"

namespace dori {
namespace {

constexpr const char* kOp = "noise_difference";

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
}
#ifdef DORI_CUDA
STABLE_TORCH_LIBRARY_IMPL(dori, CUDA, m) {
  m.impl("noise_difference", TORCH_BOX(&dori::noise_difference_cuda));
}
#endif
