// dori::activation_stats: checks, memory, registration. The kernel: cpu/ of the same name.
#include "activation_stats.h"

#include "tensors.h"

namespace dori {
namespace {

constexpr const char* kOp = "activation_stats";

Tensor activation_stats_cpu(const Tensor& x_any) {
  STD_TORCH_CHECK(x_any.dim() == 2, kOp, ": x must be [R, N], got ", x_any.dim(), " dimensions");
  const Tensor x = with_contiguous_rows(x_any, 1);
  Tensor stats = torch::stable::new_empty(x, {5, x.size(1)}, ScalarType::Double);
  const ActivationStats task{.dtype = kernel_dtype(kOp, x),
                             .x = x.const_data_ptr(),
                             .stats = static_cast<double*>(stats.mutable_data_ptr()),
                             .rows = x.size(0),
                             .neurons = x.size(1),
                             .row_stride = x.stride(0)};
  const int64_t tiles = (task.neurons + kStatsTile - 1) / kStatsTile;
  parallel_rows(tiles, task.rows * kStatsTile,
                [&](int64_t first, int64_t last) { cpu::activation_stats(task, first, last); });
  return stats;
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("activation_stats", TORCH_BOX(&dori::activation_stats_cpu));
}
