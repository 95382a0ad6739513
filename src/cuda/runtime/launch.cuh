#pragma once

// Launching: device, grid, errors. The only place with launch syntax.

#include <cstddef>
#include <cstdint>
#include <string>

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

#if !defined(DCLS_CUDA_ON_HOST)
/// Throws CudaError naming `what` if `code` is an error.
inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, not by whoever asks next
  throw CudaError("dcls: " + what + " failed: " + cudaGetErrorName(code) + ": " +
                  cudaGetErrorString(code));
}

/// Makes a device current, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&former_), "cudaGetDevice");
    if (device != former_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != former_;
  }
  ~DeviceGuard() {
    // A failure of this is not the next launch's to report.
    if (changed_ && cudaSetDevice(former_) != cudaSuccess) cudaGetLastError();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

/// Launches on the caller's stream and device. Does not synchronise or allocate.
template <typename... Params, typename... Args>
void launch(const char* name, const Execution& where, void (*kernel)(Params...), unsigned grid,
            unsigned block, std::size_t shared_bytes, Args&&... args) {
  const DeviceGuard guard(where.device_index);
  if (shared_bytes > kUnaskedShared) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          std::string("shared memory of CUDA kernel ") + name);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(where.stream)>>>(
      static_cast<Args&&>(args)...);
  check(cudaGetLastError(), std::string("launch of CUDA kernel ") + name);
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

}  // namespace dcls::cuda
