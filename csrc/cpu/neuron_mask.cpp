#include "neuron_mask.h"

#include "cpu/float16.h"
#include "cpu/simd.h"

#include <algorithm>

namespace dori::cpu {
namespace {

// Elements per step: GCC does not unroll a plain loop, and one vector per step is slower than
// memory.
constexpr int64_t kStep = 32;

// Rows of one sample, which share their scale.
template <class T>
DORI_INLINE void scale_rows(T* y, const T* x, const accumulate_t<T>* scale, int64_t rows,
                            int64_t neurons, int64_t x_stride) {
  for (int64_t r = 0; r < rows; ++r, y += neurons, x += x_stride) {
    // 32 neurons per step, then the rest
    int64_t n = 0;
    for (; n + kStep <= neurons; n += kStep) {
#pragma omp simd
      for (int64_t i = n; i < n + kStep; ++i) store(y[i], load(x[i]) * scale[i]);
    }
#pragma omp simd
    for (int64_t i = n; i < neurons; ++i) store(y[i], load(x[i]) * scale[i]);
  }
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_SCALE(T)                                                                       \
  DORI_SIMD void scale_sample(T* y, const T* x, const accumulate_t<T>* scale, int64_t rows, \
                              int64_t neurons, int64_t x_stride) {                          \
    scale_rows(y, x, scale, rows, neurons, x_stride);                                       \
  }
DORI_SCALE(float)
DORI_SCALE(double)
DORI_SCALE(bfloat16)
#undef DORI_SCALE

// float16 goes through a buffer of 1024 floats in the L1 cache: eight conversions at a time.
void scale_sample(float16* y, const float16* x, const float* scale, int64_t rows, int64_t neurons,
                  int64_t x_stride) {
  float wide[kFloat16Chunk];
  for (int64_t r = 0; r < rows; ++r, y += neurons, x += x_stride) {
    for (int64_t n = 0; n < neurons; n += kFloat16Chunk) {
      const int64_t count = std::min(neurons - n, kFloat16Chunk);
      widen(x + n, wide, count);
      scale_sample(wide, wide, scale + n, 1, count, count);
      narrow(wide, y + n, count);
    }
  }
}

}  // namespace

void neuron_mask(const NeuronMask& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    // a range of rows may begin and end within a sample; all rows of a sample share their scale
    for (int64_t r = first_row; r < last_row;) {
      const int64_t b = r / task.tokens, t = r % task.tokens;
      const int64_t rows = std::min(last_row - r, task.tokens - t);
      scale_sample(
          static_cast<T*>(task.y) + r * task.neurons,
          static_cast<const T*>(task.x) + b * task.x_batch_stride + t * task.x_token_stride,
          static_cast<const accumulate_t<T>*>(task.scale) + b * task.scale_batch_stride, rows,
          task.neurons, task.x_token_stride);
      r += rows;
    }
  });
}

void neuron_mask_in_place(const NeuronMaskInPlace& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    const auto factor = static_cast<accumulate_t<T>>(task.factor);
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t b = r / task.tokens, t = r % task.tokens;
      // this sample's part of the list, or all of it
      const int64_t first = task.offsets ? task.offsets[b] : 0;
      const int64_t last = task.offsets ? task.offsets[b + 1] : task.listed;
      T* x = static_cast<T*>(task.x) + b * task.batch_stride + t * task.token_stride;
      for (int64_t k = first; k < last; ++k) {
        T& element = x[task.indices[k] * task.neuron_stride];
        store(element, load(element) * factor);
      }
    }
  });
}

}  // namespace dori::cpu
