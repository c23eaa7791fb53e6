// norm[p, s] = || cond[p, s] - uncond[p, s] ||_2 over rows of `length` consecutive elements; the
// same with a step of guided denoising; and the cosine between uncond and that difference.
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

// guided = uncond + guidance * (cond - uncond);  latents_prev = keep * latents + add * guided
struct NoiseDifferenceStep {
  NoiseDifference difference;
  const void* latents;  // [prompts, seeds, length]
  void* latents_prev;   // [prompts, seeds, length], contiguous
  int64_t latents_prompt_stride, latents_seed_stride;
  double guidance, keep, add;
};

// A row is [channels, positions]; the mean over positions goes where norms would go.
struct NoiseCosine {
  NoiseDifference difference;
  int64_t channels, positions;
};

namespace cpu {
// Row r is prompt r % prompts of seed r / prompts.
void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row);
// Row r is seed r % seeds of prompt r / seeds.
void noise_difference_step(const NoiseDifferenceStep& task, int64_t first_row, int64_t last_row);
void noise_cosine(const NoiseCosine& task, int64_t first_row, int64_t last_row);
}  // namespace cpu
namespace cuda {
int noise_difference(const NoiseDifference& task, CUstream_st* stream);  // cudaError_t
}

}  // namespace dori
