// dori::noise_difference on GPUs.
#include "noise_difference.h"

#include "cuda/vector.cuh"

namespace dori::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Sum of 32 lanes in lane 0, in five halvings.
template <class A>
__device__ A sum_of_warp(A value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  return value;
}

// One block of 256 threads per (prompt, seed). It sums its row in one order, so results do not
// depend on the batch and repeat bit for bit. Width is that of the loads alone: thread t adds
// chunks t, t + 256, ... of 16 bytes, one partial sum per place in the chunk, however it reads
// them.
template <class T, int Width>
__global__ void __launch_bounds__(kThreads) noise_difference_kernel(const NoiseDifference task) {
  using A = accumulate_t<T>;
  using V = Vector<T, Width>;
  constexpr int kChunk = kVectorWidth<T>;
  const int64_t r = blockIdx.x;
  const int64_t p = r / task.seeds, s = r % task.seeds;
  const T* cond =
      static_cast<const T*>(task.cond) + p * task.cond_prompt_stride + s * task.cond_seed_stride;
  const T* uncond = static_cast<const T*>(task.uncond) + p * task.uncond_prompt_stride +
                    s * task.uncond_seed_stride;

  A sum[kChunk] = {};
  for (int64_t i = int64_t{threadIdx.x} * kChunk; i < task.length; i += kThreads * kChunk) {
#pragma unroll
    for (int c = 0; c < kChunk; c += Width) {
      // the last chunk of a row whose length is no multiple of it, which is read by elements
      if (i + c >= task.length) break;
      const V a = *reinterpret_cast<const V*>(cond + i + c);
      const V b = *reinterpret_cast<const V*>(uncond + i + c);
#pragma unroll
      for (int w = 0; w < Width; ++w) {
        const A difference = load(a.value[w]) - load(b.value[w]);
        sum[c + w] += difference * difference;
      }
    }
  }
  A total = 0;
#pragma unroll
  for (int c = 0; c < kChunk; ++c) total += sum[c];

  // Eight warps leave their sums in shared memory, and the first warp adds these.
  __shared__ A partial[kWarps];
  total = sum_of_warp(total);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x < 32) {
    total = sum_of_warp(threadIdx.x < kWarps ? partial[threadIdx.x] : A(0));
    if (threadIdx.x == 0) static_cast<A*>(task.norm)[r] = sqrt(total);
  }
}

}  // namespace

int noise_difference(const NoiseDifference& task, CUstream_st* stream) {
  return dispatch<Types>(task.dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    constexpr int kWide = kVectorWidth<T>;
    const auto blocks = static_cast<unsigned>(task.prompts * task.seeds);
    // Vectors only if every row begins at a multiple of 16 bytes; otherwise one element at a time.
    if (aligned(task.cond) && aligned(task.uncond) &&
        aligned_rows<T>(task.length, task.cond_prompt_stride, task.cond_seed_stride,
                        task.uncond_prompt_stride, task.uncond_seed_stride)) {
      noise_difference_kernel<T, kWide><<<blocks, kThreads, 0, stream>>>(task);
    } else {
      noise_difference_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(task);
    }
    return cudaGetLastError();
  });
}

}  // namespace dori::cuda
