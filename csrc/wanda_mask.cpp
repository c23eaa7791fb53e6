// dori::wanda_mask: checks, memory, registration. Kernel: cpu/ of the same name.
#include "wanda_mask.h"

#include "tensors.h"

namespace dori {
namespace {

constexpr const char* kOp = "wanda_mask";

Tensor norm_of(const Tensor& weight, const Tensor& norm, const char* name) {
  STD_TORCH_CHECK(norm.dim() == 1 && norm.size(0) == weight.size(1), kOp, ": ", name,
                  " must be [I] of weight [O, I]");
  STD_TORCH_CHECK(norm.scalar_type() == accumulate_dtype(kernel_dtype(kOp, weight)), kOp, ": ",
                  name, " must be float32 (float64 for float64 weight)");
  STD_TORCH_CHECK(same_device(weight, norm), kOp, ": ", name, " must be on the device of weight");
  return with_contiguous_rows(norm, 0);
}

Tensor wanda_mask_cpu(const Tensor& weight_any, const Tensor& act_norm,
                      std::optional<Tensor> base_act_norm, int64_t count) {
  STD_TORCH_CHECK(weight_any.dim() == 2, kOp, ": weight must be [O, I], got ", weight_any.dim(),
                  " dimensions");
  const Tensor weight = with_contiguous_rows(weight_any, 1);
  const Tensor norm = norm_of(weight, act_norm, "act_norm");
  std::optional<Tensor> base;
  if (base_act_norm) base = norm_of(weight, *base_act_norm, "base_act_norm");
  STD_TORCH_CHECK(0 <= count && count <= weight.size(1), kOp, ": count must be in [0, ",
                  weight.size(1), "], got ", count);
  const auto rows = weight.size(0), columns = weight.size(1);
  Tensor mask = torch::stable::new_empty(weight, {rows, columns}, ScalarType::Bool);
  const WandaMask task{.dtype = kernel_dtype(kOp, weight),
                       .weight = weight.const_data_ptr(),
                       .act_norm = norm.const_data_ptr(),
                       .base_act_norm = base ? base->const_data_ptr() : nullptr,
                       .mask = static_cast<bool*>(mask.mutable_data_ptr()),
                       .rows = rows,
                       .columns = columns,
                       .row_stride = weight.stride(0),
                       .count = count};
  parallel_rows(rows, columns,
                [&](int64_t first, int64_t last) { cpu::wanda_mask(task, first, last); });
  return mask;
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) { m.impl("wanda_mask", TORCH_BOX(&dori::wanda_mask_cpu)); }
