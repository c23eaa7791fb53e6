// dori::neuron_mask and dori::neuron_mask_: checks, memory, registration. Kernels: cpu/ and cuda/.
#include "neuron_mask.h"

#include "tensors.h"

namespace dori {
namespace {

constexpr const char* kOp = "neuron_mask";
constexpr const char* kInPlaceOp = "neuron_mask_";

// Calls launch(task) and returns the y that it wrote.
template <class Launch>
Tensor with_task(const Tensor& x_any, const Tensor& scale_any, const Launch& launch) {
  const Tensor x = with_contiguous_rows(x_any, 2);
  const Tensor scale = with_contiguous_rows(scale_any, scale_any.dim() - 1);
  STD_TORCH_CHECK(x.dim() == 3, kOp, ": x must be [B, T, N], got ", x.dim(), " dimensions");
  const DType dtype = kernel_dtype(kOp, x);
  const bool shared = scale.dim() == 1;
  STD_TORCH_CHECK(
      (shared && scale.size(0) == x.size(2)) ||
          (scale.dim() == 2 && scale.size(0) == x.size(0) && scale.size(1) == x.size(2)),
      kOp, ": scale must be [N] or [B, N] of x [B, T, N]");
  STD_TORCH_CHECK(scale.scalar_type() == accumulate_dtype(dtype), kOp,
                  ": scale must be float32 (float64 for float64 x)");
  STD_TORCH_CHECK(same_device(x, scale), kOp, ": scale must be on the device of x");
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  const NeuronMask task{.dtype = dtype,
                        .x = x.const_data_ptr(),
                        .scale = scale.const_data_ptr(),
                        .y = y.mutable_data_ptr(),
                        .batch = x.size(0),
                        .tokens = x.size(1),
                        .neurons = x.size(2),
                        .x_batch_stride = x.stride(0),
                        .x_token_stride = x.stride(1),
                        .scale_batch_stride = shared ? 0 : scale.stride(0)};
  if (y.numel() > 0) launch(task);
  return y;
}

Tensor neuron_mask_cpu(const Tensor& x, const Tensor& scale) {
  return with_task(x, scale, [](const NeuronMask& task) {
    parallel_rows(task.batch * task.tokens, task.neurons,
                  [&](int64_t first, int64_t last) { cpu::neuron_mask(task, first, last); });
  });
}

Tensor list_of(const Tensor& x, const Tensor& list, const char* name) {
  STD_TORCH_CHECK(list.dim() == 1 && list.scalar_type() == ScalarType::Long, kInPlaceOp, ": ", name,
                  " must be an int64 vector");
  STD_TORCH_CHECK(same_device(x, list), kInPlaceOp, ": ", name, " must be on the device of x");
  return with_contiguous_rows(list, 0);
}

// Calls launch(task); the lists live until it returns.
template <class Launch>
void with_lists(const Tensor& x, const Tensor& indices_any,
                const std::optional<Tensor>& offsets_any, double factor, const Launch& launch) {
  STD_TORCH_CHECK(x.dim() == 3, kInPlaceOp, ": x must be [B, T, N], got ", x.dim(), " dimensions");
  const Tensor indices = list_of(x, indices_any, "indices");
  std::optional<Tensor> offsets;
  if (offsets_any) {
    offsets = list_of(x, *offsets_any, "offsets");
    STD_TORCH_CHECK(offsets->size(0) == x.size(0) + 1, kInPlaceOp, ": offsets must have ",
                    x.size(0) + 1, " entries (B + 1), got ", offsets->size(0));
  }
  const NeuronMaskInPlace task{
      .dtype = kernel_dtype(kInPlaceOp, x),
      .x = x.mutable_data_ptr(),
      .indices = static_cast<const int64_t*>(indices.const_data_ptr()),
      .offsets = offsets ? static_cast<const int64_t*>(offsets->const_data_ptr()) : nullptr,
      .factor = factor,
      .batch = x.size(0),
      .tokens = x.size(1),
      .neurons = x.size(2),
      .listed = indices.size(0),
      .batch_stride = x.stride(0),
      .token_stride = x.stride(1),
      .neuron_stride = x.stride(2)};
  launch(task);
}

// A wrong index would write outside x. The CUDA kernel guards every access instead, since reading
// the lists here would wait for the device.
void check_lists_on_cpu(const NeuronMaskInPlace& task) {
  for (int64_t k = 0; k < task.listed; ++k) {
    STD_TORCH_CHECK(task.indices[k] >= 0 && task.indices[k] < task.neurons, kInPlaceOp,
                    ": indices must be in [0, ", task.neurons, "), got ", task.indices[k]);
  }
  if (!task.offsets) return;
  for (int64_t b = 0; b < task.batch; ++b) {
    STD_TORCH_CHECK(0 <= task.offsets[b] && task.offsets[b] <= task.offsets[b + 1] &&
                        task.offsets[b + 1] <= task.listed,
                    kInPlaceOp, ": offsets must rise from 0 to the number of indices");
  }
}

void neuron_mask_in_place_cpu(Tensor x, const Tensor& indices, std::optional<Tensor> offsets,
                              double factor) {
  with_lists(x, indices, offsets, factor, [](const NeuronMaskInPlace& task) {
    check_lists_on_cpu(task);
    parallel_rows(task.batch * task.tokens, task.listed, [&](int64_t first, int64_t last) {
      cpu::neuron_mask_in_place(task, first, last);
    });
  });
}

#ifdef DORI_CUDA
Tensor neuron_mask_cuda(const Tensor& x, const Tensor& scale) {
  return with_task(x, scale, [&](const NeuronMask& task) {
    on_current_stream(kOp, x, [&](cudaStream_t stream) { return cuda::neuron_mask(task, stream); });
  });
}

void neuron_mask_in_place_cuda(Tensor x, const Tensor& indices, std::optional<Tensor> offsets,
                               double factor) {
  with_lists(x, indices, offsets, factor, [&](const NeuronMaskInPlace& task) {
    if (x.numel() == 0 || task.listed == 0) return;
    on_current_stream(kInPlaceOp, x, [&](cudaStream_t stream) {
      return cuda::neuron_mask_in_place(task, stream);
    });
  });
}
#endif

}  // namespace
}  // namespace dori

STABLE_TORCH_LIBRARY_IMPL(dori, CPU, m) {
  m.impl("neuron_mask", TORCH_BOX(&dori::neuron_mask_cpu));
  m.impl("neuron_mask_", TORCH_BOX(&dori::neuron_mask_in_place_cpu));
}
#ifdef DORI_CUDA
STABLE_TORCH_LIBRARY_IMPL(dori, CUDA, m) {
  m.impl("neuron_mask_cuda", TORCH_BOX(&dori::neuron_mask_cuda));
  m.impl("neuron_mask__cuda", TORCH_BOX(&dori::neuron_mask_in_place_cuda));
}
#endif
