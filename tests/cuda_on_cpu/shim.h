// CUDA on a CPU: one thread of the system per CUDA thread of a block, one block after the other.
// Races between blocks stay unseen.
#pragma once

#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// blocks follow one another, so all of them may use one memory
#define __shared__ static

inline thread_local uint3 threadIdx, blockIdx;
inline dim3 gridDim, blockDim;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;

struct Block {
  explicit Block(unsigned threads) : threads(threads), all(threads), lanes(threads) {
    for (unsigned first = 0; first < threads; first += kWarp) {
      warps.push_back(std::make_unique<std::barrier<>>(std::min(kWarp, threads - first)));
    }
  }
  unsigned threads;
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<std::uint64_t> lanes;  // what each thread shows to its warp
};
inline Block* block = nullptr;

inline unsigned thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

inline void sync_warp() { block->warps[thread() / kWarp]->arrive_and_wait(); }

// The value of another lane of the warp, or the own one where the warp has no such lane.
template <class T>
T from_lane(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  const unsigned mine = thread(), other = mine / kWarp * kWarp + lane;
  std::memcpy(&block->lanes[mine], &value, sizeof(T));
  sync_warp();
  if (lane < kWarp && other < block->threads) std::memcpy(&value, &block->lanes[other], sizeof(T));
  sync_warp();
  return value;
}

template <class N>
dim3 extent(N count) {
  if constexpr (std::is_same_v<N, dim3>)
    return count;
  else
    return dim3(static_cast<unsigned>(count));
}

inline uint3 place(unsigned i, dim3 in) { return {i % in.x, i / in.x % in.y, i / in.x / in.y}; }

// Runs body as every thread of every block. Kernels that wait for one another need real threads,
// and so does a check for races; others are quicker without.
template <class Body>
void launch(dim3 grid, dim3 threads, const Body& body) {
  gridDim = grid;
  blockDim = threads;
  const unsigned blocks = grid.x * grid.y * grid.z, count = threads.x * threads.y * threads.z;
#ifdef DORI_THREADS
  Block shared(count);
  block = &shared;
  std::vector<std::thread> team;
  for (unsigned t = 0; t < count; ++t) {
    team.emplace_back([&, t] {
      threadIdx = place(t, threads);
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx = place(b, grid);
        body();
        shared.all.arrive_and_wait();
      }
    });
  }
  for (auto& one : team) one.join();
#else
  for (unsigned b = 0; b < blocks; ++b) {
    for (unsigned t = 0; t < count; ++t) {
      blockIdx = place(b, grid);
      threadIdx = place(t, threads);
      body();
    }
  }
#endif
}

}  // namespace cuda_on_cpu

#define __syncthreads() cuda_on_cpu::block->all.arrive_and_wait()
#define __syncwarp(...) cuda_on_cpu::sync_warp()
#define __shfl_down_sync(mask, value, offset) \
  cuda_on_cpu::from_lane(value, cuda_on_cpu::thread() % 32 + (offset))
#define __shfl_xor_sync(mask, value, bits) \
  cuda_on_cpu::from_lane(value, cuda_on_cpu::thread() % 32 ^ (bits))
#define __ldg(pointer) (*(pointer))
#define cudaGetLastError() 0
