// dori::neuron_mask and dori::neuron_mask_ on GPUs.
#include "neuron_mask.h"

#include "cuda/vector.cuh"

#include <algorithm>
#include <cstdint>

namespace dori::cuda {
namespace {

constexpr int64_t kThreads = 256;
// 65,536 blocks fill any GPU several times over; a block loops over what is left.
constexpr int64_t kMaxBlocks = 1 << 16;

// How blocks share the rows (sample, token): `chunks` blocks lie side by side along a row, and all
// of them go on by one step of rows. The host divides 64-bit numbers once per launch; the device
// divides 32-bit ones once per block.
struct Cover {
  unsigned blocks, threads, chunks, tokens;
  int64_t batch_step, token_step;
};

Cover cover(int64_t batch, int64_t tokens, int64_t items_per_row) {
  // whole warps, so that a narrow row does not leave most of a block idle
  const int64_t threads = std::clamp<int64_t>((items_per_row + 31) / 32 * 32, 32, kThreads);
  const int64_t chunks = std::min((items_per_row + threads - 1) / threads, kMaxBlocks);
  const int64_t rows = std::min(batch * tokens, kMaxBlocks / chunks);
  return {static_cast<unsigned>(rows * chunks), static_cast<unsigned>(threads),
          static_cast<unsigned>(chunks),
          // no block begins beyond row 2^16, which a larger number divides to 0, too
          static_cast<unsigned>(std::min<int64_t>(tokens, UINT32_MAX)), rows / tokens,
          rows % tokens};
}

// Calls body(b, t, first, step) for every row of this block; the thread's items of the row are
// first, first + step, ...
template <class Body>
__device__ void for_each_row(const Cover& by, int64_t batch, int64_t tokens, const Body& body) {
  const unsigned row = blockIdx.x / by.chunks, chunk = blockIdx.x % by.chunks;
  const int64_t first = int64_t{chunk} * by.threads + threadIdx.x;
  const int64_t step = int64_t{by.chunks} * by.threads;
  int64_t b = row / by.tokens, t = row % by.tokens;
  while (b < batch) {
    body(b, t, first, step);
    b += by.batch_step;
    t += by.token_step;
    if (t >= tokens) {
      t -= tokens;
      ++b;
    }
  }
}

// One thread per vector of Width neurons of a row; neighboring threads access neighboring vectors.
template <class T, int Width>
__global__ void __launch_bounds__(kThreads)
    neuron_mask_kernel(const NeuronMask task, const Cover by) {
  using A = accumulate_t<T>;
  using V = Vector<T, Width>;
  // scales are wider than half-precision elements: two of their vectors belong to one of x
  constexpr int kScales = Width < kVectorWidth<A> ? Width : kVectorWidth<A>;
  using S = Vector<A, kScales>;
  const int64_t row_vectors = task.neurons / Width;
  for_each_row(by, task.batch, task.tokens, [&](int64_t b, int64_t t, int64_t first, int64_t step) {
    // int64 throughout: a batch may have more than 2^31 elements
    const V* from = reinterpret_cast<const V*>(static_cast<const T*>(task.x) +
                                               b * task.x_batch_stride + t * task.x_token_stride);
    // a scale_batch_stride of 0 gives all samples one scale
    const S* scales =
        reinterpret_cast<const S*>(static_cast<const A*>(task.scale) + b * task.scale_batch_stride);
    V* to = reinterpret_cast<V*>(task.y) + (b * task.tokens + t) * row_vectors;
    // an unrolled loop would count its steps by a 64-bit division
#pragma unroll 1
    for (int64_t v = first; v < row_vectors; v += step) {
      const V x = from[v];
      V y;
#pragma unroll
      for (int s = 0; s < Width / kScales; ++s) {
        const S scale = scales[v * (Width / kScales) + s];
#pragma unroll
        for (int w = 0; w < kScales; ++w) {
          store(y.value[s * kScales + w], load(x.value[s * kScales + w]) * scale.value[w]);
        }
      }
      to[v] = y;
    }
  });
}

// One thread per place in the list of a row's sample; a wrong index or offset touches nothing.
template <class T>
__global__ void __launch_bounds__(kThreads)
    neuron_mask_in_place_kernel(const NeuronMaskInPlace task, const Cover by) {
  const auto factor = static_cast<accumulate_t<T>>(task.factor);
  for_each_row(by, task.batch, task.tokens, [&](int64_t b, int64_t t, int64_t first, int64_t step) {
    int64_t begin = 0, end = task.listed;
    if (task.offsets) {
      begin = task.offsets[b] > 0 ? task.offsets[b] : 0;
      end = task.offsets[b + 1] < end ? task.offsets[b + 1] : end;
    }
    T* row = static_cast<T*>(task.x) + b * task.batch_stride + t * task.token_stride;
#pragma unroll 1
    for (int64_t k = begin + first; k < end; k += step) {
      const int64_t n = task.indices[k];
      if (n < 0 || n >= task.neurons) continue;
      T& element = row[n * task.neuron_stride];
      store(element, load(element) * factor);
    }
  });
}

}  // namespace

int neuron_mask(const NeuronMask& task, CUstream_st* stream) {
  return dispatch<Types>(task.dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    constexpr int kWide = kVectorWidth<T>;
    // Vectors only if every row begins at a multiple of 16 bytes; otherwise one element per thread.
    if (aligned(task.x) && aligned(task.y) && aligned(task.scale) &&
        aligned_rows<T>(task.neurons, task.x_batch_stride, task.x_token_stride) &&
        aligned_rows<A>(task.scale_batch_stride)) {
      const Cover by = cover(task.batch, task.tokens, task.neurons / kWide);
      neuron_mask_kernel<T, kWide><<<by.blocks, by.threads, 0, stream>>>(task, by);
    } else {
      const Cover by = cover(task.batch, task.tokens, task.neurons);
      neuron_mask_kernel<T, 1><<<by.blocks, by.threads, 0, stream>>>(task, by);
    }
    return cudaGetLastError();
  });
}

int neuron_mask_in_place(const NeuronMaskInPlace& task, CUstream_st* stream) {
  return dispatch<Types>(task.dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    // a sample lists no neuron twice
    const Cover by = cover(task.batch, task.tokens, std::min(task.listed, task.neurons));
    neuron_mask_in_place_kernel<T><<<by.blocks, by.threads, 0, stream>>>(task, by);
    return cudaGetLastError();
  });
}

}  // namespace dori::cuda
