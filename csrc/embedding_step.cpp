// dori::embedding_step: checks, step counts, registration. Kernel: cpu/ of the same name.
#include "embedding_step.h"

#include "tensors.h"

namespace dori {
namespace {

constexpr const char* kOp = "embedding_step";

Layout layout_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

void check_like_params(const Tensor& params, const Tensor& x, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == params.size(0) && x.size(1) == params.size(1) &&
                      x.size(2) == params.size(2),
                  kOp, ": ", name, " must have the shape of params");
  STD_TORCH_CHECK(x.scalar_type() == dtype, kOp, ": ", name, " has the wrong dtype");
  STD_TORCH_CHECK(same_device(x, params), kOp, ": ", name, " must be on the device of params");
}

void check_per_problem(const Tensor& params, const Tensor& x, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == params.size(0), kOp, ": ", name,
                  " must be [P] of params [P, T, D]");
  STD_TORCH_CHECK(x.scalar_type() == dtype, kOp, ": ", name, " has the wrong dtype");
  STD_TORCH_CHECK(same_device(x, params), kOp, ": ", name, " must be on the device of params");
}

void check_frozen(const Tensor& params, const Tensor& frozen) {
  const bool per_problem = frozen.dim() == 2;
  STD_TORCH_CHECK((per_problem || frozen.dim() == 1) &&
                      frozen.size(frozen.dim() - 1) == params.size(1) &&
                      (!per_problem || frozen.size(0) == params.size(0)),
                  kOp, ": frozen must be [T] or [P, T] of params [P, T, D]");
  STD_TORCH_CHECK(frozen.scalar_type() == ScalarType::Bool, kOp, ": frozen must be bool");
  STD_TORCH_CHECK(same_device(frozen, params), kOp, ": frozen must be on the device of params");
}

const bool* flags(const std::optional<Tensor>& x) {
  return x ? static_cast<const bool*>(x->const_data_ptr()) : nullptr;
}

void embedding_step_cpu(Tensor params, const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq,
                        Tensor step, std::optional<Tensor> active_any,
                        std::optional<Tensor> frozen_any, double lr, double beta1, double beta2,
                        double eps, double weight_decay) {
  STD_TORCH_CHECK(params.dim() == 3, kOp, ": params must be [P, T, D], got ", params.dim(),
                  " dimensions");
  const DType dtype = kernel_dtype(kOp, params);
  check_like_params(params, grad, "grad", params.scalar_type());
  check_like_params(params, exp_avg, "exp_avg", accumulate_dtype(dtype));
  check_like_params(params, exp_avg_sq, "exp_avg_sq", accumulate_dtype(dtype));
  check_per_problem(params, step, "step", ScalarType::Long);
  std::optional<Tensor> active, frozen;
  if (active_any) {
    check_per_problem(params, *active_any, "active", ScalarType::Bool);
    active = with_contiguous_rows(*active_any, 0);
  }
  if (frozen_any) {
    check_frozen(params, *frozen_any);
    frozen = with_contiguous_rows(*frozen_any, frozen_any->dim() - 1);
  }
  // the kernel reads the counts as they are now; afterwards they are counted up in their own place
  const Tensor steps = with_contiguous_rows(step, 0);
  const EmbeddingStep task{
      .dtype = dtype,
      .params = params.mutable_data_ptr(),
      .grad = grad.const_data_ptr(),
      .exp_avg = exp_avg.mutable_data_ptr(),
      .exp_avg_sq = exp_avg_sq.mutable_data_ptr(),
      .step = static_cast<const int64_t*>(steps.const_data_ptr()),
      .active = flags(active),
      .frozen = flags(frozen),
      .problems = params.size(0),
      .tokens = params.size(1),
      .dim = params.size(2),
      .params_layout = layout_of(params),
      .grad_layout = layout_of(grad),
      .exp_avg_layout = layout_of(exp_avg),
      .exp_avg_sq_layout = layout_of(exp_avg_sq),
      .frozen_problem_stride = frozen && frozen->dim() == 2 ? frozen->stride(0) : 0,
      .adam = {lr, beta1, beta2, eps, weight_decay}};
  parallel_rows(task.problems * task.tokens, task.dim,
                [&](int64_t first, int64_t last) { cpu::embedding_step(task, first, last); });
  auto* count = static_cast<int64_t*>(step.mutable_data_ptr());
  for (int64_t p = 0; p < task.problems; ++p) {
    count[p * step.stride(0)] += !task.active || task.active[p];
  }
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("embedding_step", TORCH_BOX(&dori::embedding_step_cpu));
}
