#include "cuda/conv/toeplitz_launch.cuh"

namespace dcls::cuda {
#if defined(DCLS_CUDA_ON_HOST)
bool has_tensor_cores(const Execution&) { return true; }
#else
bool has_tensor_cores(const Execution& where) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, where.device_index),
        "cudaDeviceGetAttribute");
  return major >= 8;
}
#endif
template void launch_toeplitz_forward<Half>(const ConvArgs&, ConvPass, const void*, const void*,
                                            const void*, void*, const Execution&);
template void launch_toeplitz_kernel<Half>(const ConvArgs&, const void*, const void*,
                                           const std::uint8_t*, void*, void*, const Execution&);
template void launch_toeplitz_partial<Half>(const ConvArgs&, const void*, const void*, void*, void*,
                                            const Execution&);
}  // namespace dcls::cuda
