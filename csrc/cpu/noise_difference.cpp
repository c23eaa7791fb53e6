#include "noise_difference.h"

#include "cpu/simd.h"
#include "cpu/sum_of_squares.h"

#include <cmath>

namespace dori::cpu {
namespace {

// target_clones does not go with templates.
#define DORI_ROW(T) \
  DORI_SIMD double row(const T* a, const T* b, int64_t n) { return sum_of_squares(a, b, n); }
DORI_ROW(float)
DORI_ROW(double)
DORI_ROW(bfloat16)
DORI_ROW(float16)
#undef DORI_ROW

}  // namespace

void noise_difference(const NoiseDifference& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t p = r / task.seeds, s = r % task.seeds;
      const T* cond = static_cast<const T*>(task.cond) + p * task.cond_prompt_stride +
                      s * task.cond_seed_stride;
      const T* uncond = static_cast<const T*>(task.uncond) + p * task.uncond_prompt_stride +
                        s * task.uncond_seed_stride;
      const double norm = std::sqrt(row(cond, uncond, task.length));
      static_cast<accumulate_t<T>*>(task.norm)[r] = static_cast<accumulate_t<T>>(norm);
    }
  });
}

}  // namespace dori::cpu
