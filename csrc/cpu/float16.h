// float16 in bulk. The F16C instructions convert eight at a time, but GCC 12 does not use them in
// loops, so these are written by hand and chosen at run time.
#pragma once

#include "cpu/simd.h"

namespace dori::cpu {

// Elements to convert at a time: the buffer stays in the L1 cache.
constexpr int64_t kFloat16Chunk = 1024;

void widen(const float16* from, float* to, int64_t count);
void narrow(const float* from, float16* to, int64_t count);

}  // namespace dori::cpu
