// dori::neuron_mask and dori::neuron_mask_ on GPUs.
#include "neuron_mask.h"

#include "cuda/vector.cuh"

#include <algorithm>

namespace dori::cuda {
namespace {

constexpr int kThreads = 256;
// 65,536 blocks fill any GPU several times over; a thread loops over what is left.
constexpr int64_t kMaxBlocks = 1 << 16;

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, kMaxBlocks));
}

// One thread per vector of Width neurons of one (sample, token); neighboring threads access
// neighboring vectors.
template <class T, int Width>
__global__ void __launch_bounds__(kThreads) neuron_mask_kernel(const NeuronMask task) {
  using A = accumulate_t<T>;
  using V = Vector<T, Width>;
  const int64_t row_vectors = task.neurons / Width;
  const int64_t vectors = task.batch * task.tokens * row_vectors;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t v = int64_t{blockIdx.x} * kThreads + threadIdx.x; v < vectors; v += step) {
    // int64 throughout: a batch may have more than 2^31 elements
    const int64_t r = v / row_vectors, n = (v % row_vectors) * Width;
    const int64_t b = r / task.tokens, t = r % task.tokens;
    const T* from =
        static_cast<const T*>(task.x) + b * task.x_batch_stride + t * task.x_token_stride + n;
    const A* scale = static_cast<const A*>(task.scale) + b * task.scale_batch_stride + n;
    // 16 bytes in, 16 bytes out; a scale_batch_stride of 0 gives all samples one scale
    const V x = *reinterpret_cast<const V*>(from);
    V y;
#pragma unroll
    for (int w = 0; w < Width; ++w) store(y.value[w], load(x.value[w]) * scale[w]);
    // y is contiguous, so vector v of all rows is vector v of memory
    reinterpret_cast<V*>(task.y)[v] = y;
  }
}

// One thread per (sample, token, place in the list); a wrong index or offset touches nothing.
template <class T>
__global__ void __launch_bounds__(kThreads)
    neuron_mask_in_place_kernel(const NeuronMaskInPlace task) {
  const auto factor = static_cast<accumulate_t<T>>(task.factor);
  const int64_t items = task.batch * task.tokens * task.listed;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t r = i / task.listed, k = i % task.listed;
    const int64_t b = r / task.tokens, t = r % task.tokens;
    // every sample walks the whole list and skips the places of others
    if (task.offsets && (k < task.offsets[b] || k >= task.offsets[b + 1])) continue;
    const int64_t n = task.indices[k];
    if (n < 0 || n >= task.neurons) continue;
    T& element = static_cast<T*>(
        task.x)[b * task.batch_stride + t * task.token_stride + n * task.neuron_stride];
    store(element, load(element) * factor);
  }
}

}  // namespace

int neuron_mask(const NeuronMask& task, CUstream_st* stream) {
  return dispatch<Types>(task.dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    constexpr int kWide = kVectorWidth<T>;
    const int64_t elements = task.batch * task.tokens * task.neurons;
    // Vectors only if every row begins at a multiple of 16 bytes; otherwise one element per thread.
    if (aligned(task.x) && aligned(task.y) &&
        aligned_rows<T>(task.neurons, task.x_batch_stride, task.x_token_stride)) {
      neuron_mask_kernel<T, kWide><<<blocks_for(elements / kWide), kThreads, 0, stream>>>(task);
    } else {
      neuron_mask_kernel<T, 1><<<blocks_for(elements), kThreads, 0, stream>>>(task);
    }
    return cudaGetLastError();
  });
}

int neuron_mask_in_place(const NeuronMaskInPlace& task, CUstream_st* stream) {
  return dispatch<Types>(task.dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const int64_t items = task.batch * task.tokens * task.listed;
    neuron_mask_in_place_kernel<T><<<blocks_for(items), kThreads, 0, stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace dori::cuda
