#pragma once

// Launching: device, grid, errors. The only place with launch syntax.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/runtime/device_guard.hpp"
#include "cuda/runtime/primitives.cuh"
#include "dcls/types.hpp"

namespace dcls::cuda {

/// Blocks for `items` work items; kernels stride over the rest.
inline unsigned grid_for(std::int64_t items) {
  constexpr std::int64_t kMost = 2147483647;
  return static_cast<unsigned>(items < kMost ? items : kMost);
}

/// Shared memory that any GPU gives a block without being asked.
inline constexpr std::size_t kUnaskedShared = 48 * 1024;

/// The kernels that the library can launch.
inline std::vector<const void*>& kernels() {
  static auto* const all = new std::vector<const void*>;  // before and after any other static
  return *all;
}
template <typename Kernel>
Kernel known(Kernel kernel) {
  kernels().push_back(reinterpret_cast<const void*>(kernel));
  return kernel;
}
template <auto kKernel>
struct Known {
  static inline const decltype(kKernel) kernel = known(kKernel);  // before main()
};

#if !defined(DCLS_CUDA_ON_HOST)
/// Throws CudaError naming `what` if `code` is an error.
inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, not by whoever asks next
  throw CudaError("dcls: " + what + " failed: " + cudaGetErrorName(code) + ": " +
                  cudaGetErrorString(code));
}

/// Loads the kernels of this library at its first launch on a device. Drivers before CUDA 12.3 load
/// a kernel at its first launch, which they cannot do while a stream is captured.
inline void preload(int device) {
  constexpr int kMostDevices = 64;
  static std::once_flag loaded[kMostDevices];
  if (device >= kMostDevices) return;
  std::call_once(loaded[device], [] {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030) return;
    for (const void* kernel : kernels()) {
      cudaFuncAttributes ignored;
      // What is wrong with a kernel is told by its own launch.
      if (cudaFuncGetAttributes(&ignored, kernel) != cudaSuccess) cudaGetLastError();
    }
  });
}

/// Whether a launch that gives this error tells of a kernel before it, which ran and failed.
inline bool of_an_earlier_kernel(cudaError_t code) {
  switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

/// Launches on the caller's stream and device. Does not synchronise or allocate.
template <typename... Params, typename... Args>
void launch(const char* name, const Execution& where, void (*kernel)(Params...), unsigned grid,
            unsigned block, std::size_t shared_bytes, Args&&... args) {
  check(cudaGetLastError(), std::string("a CUDA call before the launch of kernel ") + name);
  const DeviceGuard guard(where.device_index);
  preload(where.device_index);
  if (shared_bytes > kUnaskedShared) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          std::string("shared memory of CUDA kernel ") + name);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(where.stream)>>>(
      static_cast<Args&&>(args)...);
  const cudaError_t code = cudaGetLastError();
  check(code, (of_an_earlier_kernel(code) ? "a CUDA kernel before the launch of kernel "
                                          : "launch of CUDA kernel ") +
                  std::string(name));
}
#else
template <typename... Params, typename... Args>
void launch(const char*, const Execution&, void (*kernel)(Params...), unsigned grid, unsigned block,
            std::size_t shared_bytes, Args&&... args) {
  host_cuda::LaunchOptions options;
  if (shared_bytes > kUnaskedShared) options.shared_limit = shared_bytes;
  host_cuda::launch(options, kernel, grid, block, shared_bytes, static_cast<Args&&>(args)...);
}
#endif

/// The same for a kernel that is known when this is compiled, so that it is among kernels().
template <auto kKernel, typename... Args>
void launch(const char* name, const Execution& where, unsigned grid, unsigned block,
            std::size_t shared_bytes, Args&&... args) {
  launch(name, where, Known<kKernel>::kernel, grid, block, shared_bytes,
         static_cast<Args&&>(args)...);
}

}  // namespace dcls::cuda
