#include "cpu/float16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dori::cpu {
namespace {

#if defined(__x86_64__)

// Both convert whole groups of eight and return how many elements they did.
[[gnu::target("avx,f16c")]] int64_t widen_by_8(const float16* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  return i;
}

[[gnu::target("avx,f16c")]] int64_t narrow_by_8(const float* from, float16* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  return i;
}

bool has_f16c() {
  static const bool found = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return found;
}

#else

// 0 elements done: the plain loops below do all of them.
int64_t widen_by_8(const float16*, float*, int64_t) { return 0; }
int64_t narrow_by_8(const float*, float16*, int64_t) { return 0; }
bool has_f16c() { return false; }

#endif

}  // namespace

// The last count % 8 elements (all without F16C) go one by one; both ways round alike.
void widen(const float16* from, float* to, int64_t count) {
  for (int64_t i = has_f16c() ? widen_by_8(from, to, count) : 0; i < count; ++i) {
    to[i] = load(from[i]);
  }
}

void narrow(const float* from, float16* to, int64_t count) {
  for (int64_t i = has_f16c() ? narrow_by_8(from, to, count) : 0; i < count; ++i) {
    store(to[i], from[i]);
  }
}

}  // namespace dori::cpu
