#pragma once

// The few things kernels need beyond C++. The tests define DCLS_CUDA_ON_HOST and run the kernels
// with g++ on the host: their "cuda_host.hpp" then stands in for the CUDA runtime header.

#if defined(DCLS_CUDA_ON_HOST)
#include "cuda_host.hpp"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>

#include "core/macros.hpp"

namespace dcls::cuda {

/// A device function that is rarely called: its code and registers stay out of the caller.
#if defined(DCLS_CUDA_ON_HOST)
#define DCLS_COLD __attribute__((noinline))
#else
#define DCLS_COLD __noinline__
#endif

#if !defined(DCLS_CUDA_ON_HOST)
/// The block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dcls_dynamic_shared[];
  return reinterpret_cast<T*>(dcls_dynamic_shared);
}
#endif

inline constexpr unsigned kFullWarp = 0xffffffffu;

/// Zeros for the block's shared memory from `shared` on, by all of its threads. `bytes` is a
/// multiple of 16, and so is the address.
__device__ __forceinline__ void clear_shared(void* shared, int bytes) {
  struct alignas(16) Zeros {
    float value[4];
  };
  auto* const all = static_cast<Zeros*>(shared);
  const int count = bytes / static_cast<int>(sizeof(Zeros));
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    all[i] = {};
  }
}

/// Sum over aligned groups of kWidth lanes, the same in each lane of a group. All lanes of the warp
/// take part. The order of the additions is fixed.
template <int kWidth, typename T>
__device__ __forceinline__ T group_sum(T value) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, offset, kWidth);
  }
  return value;
}

#if defined(DCLS_CUDA_ON_HOST)
__device__ __forceinline__ int count_bits(unsigned bits) { return __builtin_popcount(bits); }
/// Index of the highest bit that is set; `bits` is not 0.
__device__ __forceinline__ int highest_bit(unsigned bits) { return 31 - __builtin_clz(bits); }
#else
__device__ __forceinline__ int count_bits(unsigned bits) { return __popc(bits); }
__device__ __forceinline__ int highest_bit(unsigned bits) {
  return 31 - __clz(static_cast<int>(bits));
}
#endif

}  // namespace dcls::cuda
