// Vectorized loops without intrinsics: plain loops over plain types, compiled once per instruction
// set by target_clones, of which the loader picks the best one for the machine it runs on.
#pragma once

#include "dtype.h"

#include <bit>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define DORI_SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define DORI_SIMD_LEVELS "x86-64 x86-64-v3 x86-64-v4"
#else
#define DORI_SIMD
#define DORI_SIMD_LEVELS "baseline"
#endif

// A loop body must be inlined into every clone, or it would run as compiled for the baseline.
#define DORI_INLINE [[gnu::always_inline]] inline

namespace dori::cpu {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
struct Types {
  using bfloat16 = cpu::bfloat16;
  using float16 = cpu::float16;
};

DORI_INLINE float load(float x) { return x; }
DORI_INLINE double load(double x) { return x; }
DORI_INLINE float load(bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

// float16 has 5 exponent bits with bias 15, float 8 with bias 127: shifting by 13 lines up the
// mantissas, and 2^112 makes up for the biases, for normal and subnormal numbers alike.
DORI_INLINE float load(float16 x) {
  const uint32_t half = x.bits;
  const float magnitude = std::bit_cast<float>((half & 0x7fffu) << 13) * 0x1p112f;
  // infinities and NaNs get float's largest exponent instead
  const uint32_t special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | special |
                              ((half & 0x8000u) << 16));
}

DORI_INLINE void store(float& to, float x) { to = x; }
DORI_INLINE void store(double& to, double x) { to = x; }

// bfloat16 is the upper half of a float: round to nearest even at bit 16. A NaN could round to an
// infinity, so it is replaced.
DORI_INLINE void store(bfloat16& to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : nearest_even);
}

// Nearest even in all three ranges; adding 0.5 makes the FPU round results that are subnormal.
DORI_INLINE void store(float16& to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                             std::bit_cast<uint32_t>(0.5f);
  // from 2^16 (exponent 143 - 127) on: NaN, or infinity
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // below 2^-14 (exponent 113 - 127) float16 is subnormal
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t half = magnitude >= (143u << 23) ? special : finite;
  to.bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace dori::cpu
