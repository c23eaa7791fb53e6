// norm[p, s] = || cond[p, s] - uncond[p, s] ||_2 over rows of `length` consecutive elements.
#pragma once

#include "dtype.h"

#include <cstdint>

struct CUstream_st;

namespace dori {

// Strides count elements; a stride of 0 repeats a row, which is how uncond serves all prompts.
struct NoiseDifference {
  DType dtype;
  const void* cond;
  const void* uncond;
  void* norm;  // [prompts, seeds], contiguous, float (double for float64 inputs)
  int64_t prompts, seeds, length;
  int64_t cond_prompt_stride, cond_seed_stride;
  int64_t uncond_prompt_stride, uncond_seed_stride;
};

namespace cpu {
// Row r is prompt r % prompts of seed r / prompts.
void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row);
}  // namespace cpu
namespace cuda {
int noise_difference(const NoiseDifference& task, CUstream_st* stream);  // cudaError_t
}

}  // namespace dori
