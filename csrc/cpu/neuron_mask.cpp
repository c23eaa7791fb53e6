#include "neuron_mask.h"

#include "cpu/simd.h"

namespace dori::cpu {
namespace {

template <class T>
DORI_INLINE void scale_row(T* y, const T* x, const accumulate_t<T>* scale, int64_t neurons) {
#pragma omp simd
  for (int64_t n = 0; n < neurons; ++n) store(y[n], load(x[n]) * scale[n]);
}

// target_clones does not go with templates.
#define DORI_ROW(T)                                                           \
  DORI_SIMD void row(T* y, const T* x, const accumulate_t<T>* s, int64_t n) { \
    scale_row(y, x, s, n);                                                    \
  }
DORI_ROW(float)
DORI_ROW(double)
DORI_ROW(bfloat16)
DORI_ROW(float16)
#undef DORI_ROW

}  // namespace

void neuron_mask(const NeuronMask& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t b = r / task.tokens, t = r % task.tokens;
      row(static_cast<T*>(task.y) + r * task.neurons,
          static_cast<const T*>(task.x) + b * task.x_batch_stride + t * task.x_token_stride,
          static_cast<const accumulate_t<T>*>(task.scale) + b * task.scale_batch_stride,
          task.neurons);
    }
  });
}

void neuron_mask_in_place(const NeuronMaskInPlace& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    const auto factor = static_cast<accumulate_t<T>>(task.factor);
    for (int64_t r = first_row; r < last_row; ++r) {
      const int64_t b = r / task.tokens, t = r % task.tokens;
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
