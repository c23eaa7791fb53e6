// Calls of csrc/cuda/neuron_mask.cu: 0, neuron_mask with x [B, T, N] and scale [N] or [B, N]; 1,
// neuron_mask_ with x, indices, offsets or none, and the factor.
#include "calls.h"

namespace {

int scaled(dori::DType dtype) {
  const auto x = calls::tensor(), scale = calls::tensor();
  const auto y = calls::with_memory(x.size[0] * x.size[1] * x.size[2] * calls::width(dtype));
  const dori::NeuronMask task{.dtype = dtype,
                              .x = x.data,
                              .scale = scale.data,
                              .y = y.data,
                              .batch = x.size[0],
                              .tokens = x.size[1],
                              .neurons = x.size[2],
                              .x_batch_stride = x.stride[0],
                              .x_token_stride = x.stride[1],
                              .scale_batch_stride = scale.size.size() == 1 ? 0 : scale.stride[0]};
  const int error = dori::cuda::neuron_mask(task, nullptr);
  y.write();
  return error;
}

int in_place(dori::DType dtype) {
  const auto x = calls::tensor(), indices = calls::tensor(), offsets = calls::tensor();
  const dori::NeuronMaskInPlace task{.dtype = dtype,
                                     .x = x.data,
                                     .indices = indices.as<const int64_t>(),
                                     .offsets = offsets.as<const int64_t>(),
                                     .factor = calls::real(),
                                     .batch = x.size[0],
                                     .tokens = x.size[1],
                                     .neurons = x.size[2],
                                     .listed = indices.size[0],
                                     .batch_stride = x.stride[0],
                                     .token_stride = x.stride[1],
                                     .neuron_stride = x.stride[2]};
  const int error = dori::cuda::neuron_mask_in_place(task, nullptr);
  x.write();
  return error;
}

}  // namespace

int main() {
  return calls::each(
      [](int64_t op, dori::DType dtype) { return op == 0 ? scaled(dtype) : in_place(dtype); });
}
