// Calls of csrc/cuda/noise_difference.cu: cond [P, S, L] and uncond [S, L] or [P, S, L].
#include "calls.h"

int main() {
  return calls::each([](int64_t, dori::DType dtype) {
    const auto cond = calls::tensor(), uncond = calls::tensor();
    const auto norm =
        calls::with_memory(cond.size[0] * cond.size[1] * calls::accumulate_width(dtype));
    const bool shared = uncond.size.size() == 2;
    const dori::NoiseDifference task{.dtype = dtype,
                                     .cond = cond.data,
                                     .uncond = uncond.data,
                                     .norm = norm.data,
                                     .prompts = cond.size[0],
                                     .seeds = cond.size[1],
                                     .length = cond.size[2],
                                     .cond_prompt_stride = cond.stride[0],
                                     .cond_seed_stride = cond.stride[1],
                                     .uncond_prompt_stride = shared ? 0 : uncond.stride[0],
                                     .uncond_seed_stride = uncond.stride[shared ? 0 : 1]};
    const int error = dori::cuda::noise_difference(task, nullptr);
    norm.write();
    return error;
  });
}
