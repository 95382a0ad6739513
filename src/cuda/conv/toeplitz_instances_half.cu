#include "cuda/conv/toeplitz_launch.cuh"

namespace dcls::cuda {
#if defined(DCLS_CUDA_ON_HOST)
bool has_tensor_cores(DType, const Execution&) { return true; }
#else
bool has_tensor_cores(DType dtype, const Execution& where) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, where.device_index), "cudaDeviceGetAttribute");
    return value;
  };
  return tensor_cores_pay(dtype, attribute(cudaDevAttrComputeCapabilityMajor),
                          attribute(cudaDevAttrComputeCapabilityMinor));
}
#endif
template void launch_toeplitz_forward<Half>(const ConvArgs&, ConvPass, const void*, const void*,
                                            const void*, void*, const Execution&);
template void launch_toeplitz_kernel<Half>(const ConvArgs&, const void*, const void*,
                                           const std::uint8_t*, void*, void*, const Execution&);
template void launch_toeplitz_partial<Half>(const ConvArgs&, const void*, const void*, void*, void*,
                                            void*, const Execution&);
}  // namespace dcls::cuda
