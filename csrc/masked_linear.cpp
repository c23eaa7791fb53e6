// dori::masked_linear: torch's own linear, whose result is masked in place.
#include "neuron_mask.h"

#include "tensors.h"

#include <array>

namespace dori {
namespace {

constexpr const char* kOp = "masked_linear";

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]));
}

Tensor masked_linear_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                         const Tensor& scale_any) {
  STD_TORCH_CHECK(x.dim() == 3, kOp, ": x must be [B, T, I], got ", x.dim(), " dimensions");
  Tensor y = linear(x, weight, bias);
  const Tensor scale = with_contiguous_rows(scale_any, scale_any.dim() - 1);
  const DType dtype = kernel_dtype(kOp, y);
  const bool shared = scale.dim() == 1;
  STD_TORCH_CHECK(
      (shared && scale.size(0) == y.size(2)) ||
          (scale.dim() == 2 && scale.size(0) == y.size(0) && scale.size(1) == y.size(2)),
      kOp, ": scale must be [O] or [B, O] of weight [O, I] and x [B, T, I]");
  STD_TORCH_CHECK(scale.scalar_type() == accumulate_dtype(dtype), kOp,
                  ": scale must be float32 (float64 for float64 x)");
  STD_TORCH_CHECK(same_device(y, scale), kOp, ": scale must be on the device of x");
  const NeuronMask task{.dtype = dtype,
                        .x = y.const_data_ptr(),
                        .scale = scale.const_data_ptr(),
                        .y = y.mutable_data_ptr(),
                        .batch = y.size(0),
                        .tokens = y.size(1),
                        .neurons = y.size(2),
                        .x_batch_stride = y.stride(0),
                        .x_token_stride = y.stride(1),
                        .scale_batch_stride = shared ? 0 : scale.stride(0)};
  parallel_rows(task.batch * task.tokens, task.neurons,
                [&](int64_t first, int64_t last) { cpu::neuron_mask(task, first, last); });
  return y;
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&dori::masked_linear_cpu));
}
