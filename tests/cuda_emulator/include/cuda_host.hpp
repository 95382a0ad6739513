// CUDA kernels on the host, for tests: g++ compiles the very .cuh templates that nvcc compiles, and
// launch() runs them.
//
// Blocks run in parallel on OpenMP threads, the threads of a block on fibers. What CUDA leaves
// undefined ends the launch with a KernelError that names the block and the thread: divergent
// barriers, deadlocks, a shuffle from a lane that does not take part, an access to a
// GuardedBuffer's guard page, a write behind dynamic shared memory.
//
// Races show by their effect (run a kernel in all_schedules() and compare bitwise), and in a build
// with -fsanitize=thread as reports: there each CUDA thread is a thread to the sanitizer, and only
// the barriers order them. Such a build also sees what no effect on a host can show, a shuffle
// taken for a memory barrier.
//
// What it cannot do: misaligned accesses show under UBSan only. Dynamic shared memory is NaN in
// every byte when a block starts, but static shared memory is one copy per OS thread that keeps
// what the block before left there. There are no atomics, on purpose: the library's kernels are
// deterministic gathers.
#pragma once

#if !defined(DCLS_CUDA_ON_HOST)
#error "define DCLS_CUDA_ON_HOST for the whole target"
#endif

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda_host/guarded_buffer.hpp"
#include "cuda_host/launch.hpp"

namespace dcls::host_cuda {

/// The worker whose kernel this is. Called outside of a kernel, there is none, and the program
/// ends.
inline Worker& this_block() {
  if (active_worker != nullptr) return *active_worker;
  std::fprintf(stderr, "a CUDA intrinsic was called outside of a kernel\n");
  std::abort();
}

/// For the checked views of debug builds: ends the launch with a KernelError that says `what`, and
/// where.
[[noreturn]] inline void fail(std::string what) { this_block().fail(std::move(what)); }

namespace detail {

template <class T>
T shuffle(Op op, unsigned mask, T value, unsigned argument, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles int, unsigned, long, long long, float and double");
  Request request{op, sizeof(T), mask, argument, static_cast<unsigned>(width), 0, site};
  std::memcpy(&request.value, &value, sizeof(T));
  const std::uint64_t result = this_block().rendezvous(request);
  std::memcpy(&value, &result, sizeof(T));
  return value;
}

inline std::uint64_t vote(Op op, unsigned mask, bool predicate, Site site) {
  return this_block().rendezvous({op, 0, mask, 0, kWarpSize, predicate, site});
}

}  // namespace detail

/// For the host's side of matrix instructions: gives each lane what all lanes of its warp bring.
template <unsigned kWords>
void exchange(const std::uint32_t (&mine)[kWords], std::uint32_t (&all)[kWarpSize][kExchangeWords],
              Site site) {
  static_assert(kWords <= kExchangeWords, "more registers than an exchange takes");
  Request request{Op::kExchange, 0, ~0u, 0, kWarpSize, 0, site};
  for (unsigned i = 0; i < kWords; ++i) request.words[i] = mine[i];
  this_block().exchange(request, all);
}

}  // namespace dcls::host_cuda

namespace dcls::cuda {

/// The launch's dynamic shared memory, aligned to 16 bytes.
template <class T>
T* dynamic_shared() {
  static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
  return static_cast<T*>(host_cuda::this_block().dynamic_shared());
}

}  // namespace dcls::cuda

// ---- the surface of CUDA -----------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local

#define threadIdx (::dcls::host_cuda::this_block().thread_index())
#define blockIdx (::dcls::host_cuda::this_block().block_index())
#define blockDim (::dcls::host_cuda::this_block().block_dim())
#define gridDim (::dcls::host_cuda::this_block().grid_dim())

constexpr int warpSize = 32;

// A default argument stands for the line of the call.
#define DCLS_HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  this_block().rendezvous({Op::kSyncThreads, 0, 0, 0, kWarpSize, 0, {file, line}});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  this_block().rendezvous({Op::kSyncWarp, 0, mask, 0, kWarpSize, 0, {file, line}});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return detail::shuffle(Op::kShfl, mask, value, static_cast<unsigned>(source_lane), width,
                         {file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return detail::shuffle(Op::kShflUp, mask, value, delta, width, {file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return detail::shuffle(Op::kShflDown, mask, value, delta, width, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return detail::shuffle(Op::kShflXor, mask, value, static_cast<unsigned>(lane_mask), width,
                         {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return static_cast<unsigned>(detail::vote(Op::kBallot, mask, predicate != 0, {file, line}));
}

inline int __any_sync(unsigned mask, int predicate, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return static_cast<int>(detail::vote(Op::kAny, mask, predicate != 0, {file, line}));
}

inline int __all_sync(unsigned mask, int predicate, DCLS_HOST_CUDA_SITE) {
  using namespace dcls::host_cuda;
  return static_cast<int>(detail::vote(Op::kAll, mask, predicate != 0, {file, line}));
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
