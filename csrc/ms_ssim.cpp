// dori::ms_ssim: checks, memory, registration. The kernel: cpu/ of the same name.
#include "ms_ssim.h"

#include "tensors.h"

#include <cmath>

namespace dori {
namespace {

constexpr const char* kOp = "ms_ssim";

void check_pairs(const Tensor& maps, const Tensor& pairs) {
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(1) == 2 && pairs.scalar_type() == ScalarType::Long,
                  kOp, ": pairs must be int64 [K, 2]");
  STD_TORCH_CHECK(same_device(maps, pairs), kOp, ": pairs must be on the device of maps");
  const auto* image = static_cast<const int64_t*>(pairs.const_data_ptr());
  for (int64_t i = 0; i < pairs.numel(); ++i) {
    STD_TORCH_CHECK(image[i] >= 0 && image[i] < maps.size(1), kOp, ": pairs must be in [0, ",
                    maps.size(1), "), got ", image[i]);
  }
}

void set_window(MsSsim& task, int64_t kernel_size, double sigma) {
  STD_TORCH_CHECK(kernel_size % 2 == 1 && 3 <= kernel_size && kernel_size <= kMaxWindow, kOp,
                  ": kernel_size must be odd, 3 to ", kMaxWindow, ", got ", kernel_size);
  STD_TORCH_CHECK(sigma > 0, kOp, ": sigma must be positive, got ", sigma);
  task.kernel_size = static_cast<int>(kernel_size);
  double sum = 0;
  for (int64_t i = 0; i < kernel_size; ++i) {
    const double distance = (static_cast<double>(i) - (kernel_size - 1) / 2.0) / sigma;
    sum += task.window[i] = std::exp(-distance * distance / 2);
  }
  for (int64_t i = 0; i < kernel_size; ++i) task.window[i] /= sum;
}

void set_scales(MsSsim& task, int64_t height, int64_t width, const std::vector<double>& betas) {
  const auto scales = static_cast<int64_t>(betas.size());
  STD_TORCH_CHECK(0 < scales && scales <= kMaxScales, kOp, ": betas must be 1 to ", kMaxScales,
                  " numbers, got ", scales);
  task.scales = static_cast<int>(scales);
  const int64_t reach = task.kernel_size - 1;
  for (int s = 0; s < task.scales; ++s) {
    const int64_t h = height >> s, w = width >> s;
    STD_TORCH_CHECK(std::min(h, w) > reach, kOp, ": kernel_size must be at most ", std::min(h, w),
                    " to fit scale ", s, " of maps [", height, ", ", width, "], got ",
                    task.kernel_size);
    task.scale[s] = {h, w, h - reach, w - reach, betas[s]};
  }
}

Tensor ms_ssim_cpu(const Tensor& maps_any, const Tensor& pairs_any, int64_t kernel_size,
                   double sigma, std::vector<double> betas, bool rescale) {
  STD_TORCH_CHECK(maps_any.dim() == 5, kOp, ": maps must be [G, M, C, H, W], got ", maps_any.dim(),
                  " dimensions");
  const Tensor pairs = with_contiguous_rows(pairs_any, 0);
  check_pairs(maps_any, pairs);
  const Tensor maps = with_contiguous_rows(maps_any, 2);
  const DType dtype = kernel_dtype(kOp, maps);
  const ScalarType type = accumulate_dtype(dtype);
  Tensor similarity = torch::stable::new_empty(maps, {maps.size(0), pairs.size(0)}, type);
  MsSsim task{.dtype = dtype,
              .maps = maps.const_data_ptr(),
              .pairs = static_cast<const int64_t*>(pairs.const_data_ptr()),
              .workspace = nullptr,
              .similarity = similarity.mutable_data_ptr(),
              .groups = maps.size(0),
              .images = maps.size(1),
              .channels = maps.size(2),
              .pair_count = pairs.size(0),
              .group_stride = maps.stride(0),
              .image_stride = maps.stride(1),
              .rescale = rescale,
              .scales = 0,
              .kernel_size = 0,
              .scale = {},
              .window = {}};
  set_window(task, kernel_size, sigma);
  set_scales(task, maps.size(3), maps.size(4), betas);
  if (similarity.numel() == 0) return similarity;
  Tensor workspace = torch::stable::new_empty(maps, {task.images * task.image_size()}, type);
  task.workspace = workspace.mutable_data_ptr();
  const int64_t work = elements_from(maps, 2) * 2 * kernel_size;
  for (int64_t group = 0; group < task.groups; ++group) {
    parallel_rows(task.images, work, [&](int64_t first, int64_t last) {
      cpu::ms_ssim_images(task, group, first, last);
    });
    parallel_rows(task.pair_count, work, [&](int64_t first, int64_t last) {
      cpu::ms_ssim_pairs(task, group, first, last);
    });
  }
  return similarity;
}

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) { m.impl("ms_ssim", TORCH_BOX(&dori::ms_ssim_cpu)); }
