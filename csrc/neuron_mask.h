// y[b, t, n] = x[b, t, n] * scale[b, n], and in place for listed neurons with one factor.
#pragma once

#include "dtype.h"

#include <cstdint>

struct CUstream_st;

namespace dori {

// Strides count elements. Rows of x are contiguous; a scale_batch_stride of 0 shares the scale.
struct NeuronMask {
  DType dtype;
  const void* x;
  const void* scale;  // float (double for float64 x), rows contiguous
  void* y;            // [batch, tokens, neurons], contiguous
  int64_t batch, tokens, neurons;
  int64_t x_batch_stride, x_token_stride, scale_batch_stride;
};

// x *= factor at the listed neurons. Sample b owns indices[offsets[b] .. offsets[b + 1]), or all
// `listed` of them where offsets is null. An index may not occur twice in one sample.
struct NeuronMaskInPlace {
  DType dtype;
  void* x;
  const int64_t* indices;
  const int64_t* offsets;  // [batch + 1] or null
  double factor;
  int64_t batch, tokens, neurons, listed;
  int64_t batch_stride, token_stride, neuron_stride;
};

namespace cpu {
void neuron_mask(const NeuronMask& task, int64_t first_row, int64_t last_row);
void neuron_mask_in_place(const NeuronMaskInPlace& task, int64_t first_row, int64_t last_row);
}  // namespace cpu
namespace cuda {
int neuron_mask(const NeuronMask& task, CUstream_st* stream);  // cudaError_t
int neuron_mask_in_place(const NeuronMaskInPlace& task, CUstream_st* stream);
}  // namespace cuda

}  // namespace dori
